"""What is measured, and what each case must at least read and compute."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """Prompts of `prompt` tokens, then `steps` more tokens for each of `sequences`.

    Without steps the prefill is what counts. With `keeps` the prompts are read once and every
    round goes on from there.
    """

    name: str
    prompt: int
    steps: int
    sequences: int = 1
    keeps: bool = False

    @property
    def tokens(self) -> int:
        """The tokens of a round that counts: read by the prefill, or generated."""
        return self.sequences * (self.steps or self.prompt)

    def room(self, rounds: int) -> int:
        """The most tokens that a sequence comes to in so many rounds and a warm-up, and one to
        spare: no sequence may end by itself.
        """
        return self.prompt + self.steps * (rounds + 1 if self.keeps else 1) + 2

    def context(self, rounds: int) -> float:
        """How many tokens a generated one attends to, on average."""
        return self.prompt + self.steps * (rounds + 1 if self.keeps else 1) / 2


CASES: Mapping[str, Case] = {
    case.name: case
    for case in (
        Case("pp512", 512, 0),
        Case("tg128", 16, 128),
        Case("tg64x8", 16, 64, sequences=8),
        Case("tg32@4096", 4096, 32, keeps=True),
    )
}
# A fresh process answers the first, up to its first token; its memory is read after the second.
COLD = (Case("cold", 16, 0), Case("memory", 512, 16))


@dataclass(frozen=True)
class Room:
    """What a worker must have room for: tokens of a sequence, sequences; and its threads."""

    tokens: int
    sequences: int
    threads: int

    @staticmethod
    def of(cases: Iterable[Case], rounds: int, threads: int) -> Room:
        """Room for every case and a cold start, in steps of 512 tokens: what is built for it is
        good for other rounds too.
        """
        chosen = [*cases, *COLD]
        tokens = max(case.room(rounds) for case in chosen)
        return Room(-(-tokens // 512) * 512, max(case.sequences for case in chosen), threads)


@dataclass(frozen=True)
class Layout:
    """How a stack stores matrices in a format: bits of a weight, and of what it keeps beside each
    group of weights (0: beside each row, too few to count).
    """

    bits: int
    group: int = 0
    scale_bits: int = 0

    def bytes_of(self, weights: int) -> float:
        """Bytes that so many weights take."""
        return weights * (self.bits + (self.scale_bits / self.group if self.group else 0)) / 8


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder by its configuration."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    mlp: int
    vocabulary: int

    @staticmethod
    def of(config: Mapping[str, Any]) -> Shape:
        """The sizes in a Hugging Face configuration."""
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        return Shape(
            config["num_hidden_layers"],
            hidden,
            heads,
            config["num_key_value_heads"],
            config.get("head_dim") or hidden // heads,
            config["intermediate_size"],
            config["vocab_size"],
        )

    @property
    def layer_weights(self) -> int:
        """Weights of the matrices of all layers."""
        attention = self.hidden * self.head_size * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.mlp)

    @property
    def head_weights(self) -> int:
        """Weights of the matrix that makes logits."""
        return self.hidden * self.vocabulary

    def cache_entries(self, tokens: float) -> float:
        """Numbers in the keys and values of so many tokens."""
        return tokens * 2 * self.layers * self.kv_heads * self.head_size


@dataclass(frozen=True)
class Need:
    """What one round cannot do without: bytes from memory, operations on matrices."""

    bytes: float
    operations: float


def need(case: Case, shape: Shape, layout: Layout, kv_bits: int, rounds: int) -> Need:
    """Bytes and operations of a round: every packed weight once a pass, the cache of every
    sequence, a multiply-add as two operations.

    A prefill multiplies the layers by every token and makes one row of logits for each sequence.
    """
    passes = case.steps or 1
    read = layout.bytes_of(shape.layer_weights + shape.head_weights) * passes
    context = case.context(rounds) if case.steps else case.prompt / 2
    attended = context * case.tokens
    if case.steps:  # a prefill reads what it has just made, from nearer than memory
        read += shape.cache_entries(attended) * kv_bits / 8
    rows = case.tokens if case.steps else case.sequences
    multiplied = 2 * (shape.layer_weights * case.tokens + shape.head_weights * rows)
    attention = 4 * shape.layers * shape.heads * shape.head_size * attended
    return Need(read, multiplied + attention)
