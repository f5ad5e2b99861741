"""A flattened graph run two ways through the reference: whole sequences at once, and step by step
over paged caches.
"""

from __future__ import annotations

import numpy as np
import torch
from ferrule.compiler.reference import evaluate
from ferrule.ir.graph import Graph
from ferrule.ir.types import CacheType

Weights = dict[str, torch.Tensor]
Tokens = list[np.ndarray]
SPARE = 3  # blocks of the pool that no sequence owns
BLOCK = 4  # tokens of a block where no cache says so


def random_weights(graph: Graph, rng: np.random.Generator) -> Weights:
    """A random float64 tensor for each parameter of a graph."""
    return {
        p["name"]: torch.from_numpy(rng.standard_normal([int(d) for d in p.shape]))
        for p in graph.parameters()
    }


def random_sequences(rng: np.random.Generator, count: int, vocabulary: int) -> Tokens:
    """Token ids of sequences of different lengths."""
    return [rng.integers(0, vocabulary, int(rng.integers(2, 23))) for _ in range(count)]


def whole(graph: Graph, weights: Weights, sequences: Tokens) -> list[np.ndarray]:
    """Logits of every token of every sequence by a ragged graph: all tokens in one step."""
    given = _batch([(s, 0) for s in sequences])
    logits = _evaluate(graph, given, weights)[0]
    return np.split(logits.numpy(), np.cumsum([len(s) for s in sequences])[:-1])


class PagedRun:
    """A paged graph with its caches, which start as NaN, and blocks in random order."""

    def __init__(
        self, graph: Graph, weights: Weights, count: int, rng: np.random.Generator
    ) -> None:
        self.graph, self.weights = graph, weights
        self.kinds = {i["name"]: i.type for i in graph.inputs if isinstance(i.type, CacheType)}
        self.block = max(k.block for k in self.kinds.values()) or BLOCK
        most = -(-32 // self.block)
        pool = count * most + SPARE
        self.table = rng.permutation(pool)[: count * most].reshape(count, most)
        shapes = {n: k.array(pool) for n, k in self.kinds.items()}
        self.caches = {n: torch.full(s, torch.nan, dtype=torch.float64) for n, s in shapes.items()}
        self.done, self.state = [0] * count, [-1] * count
        self.rng = rng

    def step(self, parts: list[tuple[int, np.ndarray]]) -> list[np.ndarray]:
        """Logits of each part (sequence number, its next tokens): of all its tokens, or of its last
        where rows are chosen.
        """
        given = _batch([(tokens, self.done[n]) for n, tokens in parts])
        lengths = [len(tokens) for _, tokens in parts]
        ends = [self.done[n] + len(tokens) for n, tokens in parts]
        slots = [self._slots(n, len(tokens)) for n, tokens in parts]
        given |= {
            "context_length": np.array(ends),
            "block_table": self.table[[n for n, _ in parts]],
            "slots": np.concatenate(slots),
            "logit_rows": np.cumsum(lengths) - 1,
            **self._states([n for n, _ in parts]),
        }
        outputs = _evaluate(self.graph, given, self.weights, self.caches)
        named = dict(zip(self.graph.output_names, outputs, strict=True))
        self.caches = {n: named[n] for n in self.caches}
        for (n, _), end in zip(parts, ends, strict=True):
            self.done[n] = end
        logits = named["logits"].numpy()
        cuts = range(1, len(parts)) if "argmax" in named else np.cumsum(lengths)[:-1]
        return np.split(logits, list(cuts))

    def _states(self, numbers: list[int]) -> dict[str, np.ndarray]:
        """Where the states of a step's sequences are, and go: elsewhere, or where they were."""
        before = np.array([self.state[n] for n in numbers])
        free = iter(self.rng.permutation(sorted(set(range(len(self.table) * 2)) - {*self.state})))
        for n in numbers:
            if self.state[n] < 0 or self.rng.random() < 0.4:
                self.state[n] = int(next(free))
        return {"state_from": before, "state_to": np.array([self.state[n] for n in numbers])}

    def _slots(self, n: int, count: int) -> np.ndarray:
        places = np.arange(self.done[n], self.done[n] + count)
        return self.table[n][places // self.block] * self.block + places % self.block


def _batch(parts: list[tuple[np.ndarray, int]]) -> dict[str, np.ndarray]:
    """tokens, positions and query_start of sequences that go on at given places."""
    starts = np.cumsum([0] + [len(t) for t, _ in parts])
    positions = [np.arange(at, at + len(t)) for t, at in parts]
    return {
        "tokens": np.concatenate([t for t, _ in parts]),
        "positions": np.concatenate(positions),
        "query_start": starts,
    }


def _evaluate(
    graph: Graph, given: dict[str, np.ndarray], weights: Weights, caches: Weights | None = None
) -> tuple[torch.Tensor, ...]:
    names = {i["name"] for i in graph.inputs}
    inputs = {k: torch.from_numpy(v.astype(np.int32)) for k, v in given.items() if k in names}
    return evaluate(graph, inputs | (caches or {}), weights, wide=True)


def prepared(preparation: Graph, weights: Weights) -> Weights:
    """The weights, and what a preparation graph makes of them."""
    made = evaluate(preparation, {}, weights, wide=True)
    return weights | dict(zip(preparation.output_names, made, strict=True))


def check_paged(
    ragged: Graph,
    paged: Graph,
    rng: np.random.Generator,
    vocabulary: int,
    preparation: Graph | None = None,
) -> None:
    """A paged graph gives the ragged one's logits, whatever the steps in which tokens come."""
    weights = random_weights(ragged, rng)
    sequences = random_sequences(rng, 3, vocabulary)
    wanted = whole(ragged, weights, sequences)
    if preparation is not None:
        weights = prepared(preparation, weights)
    run = PagedRun(paged, weights, len(sequences), rng)
    while left := [n for n, s in enumerate(sequences) if run.done[n] < len(s)]:
        chosen = [n for n in left if rng.random() < 0.7] or left[:1]
        parts = [(n, _next(sequences[n], run.done[n], rng)) for n in chosen]
        before = list(run.done)
        for (n, tokens), logits in zip(parts, run.step(parts), strict=True):
            expected = wanted[n][before[n] : before[n] + len(tokens)][-len(logits) :]
            np.testing.assert_allclose(logits, expected, rtol=1e-9, atol=1e-9)


def _next(tokens: np.ndarray, done: int, rng: np.random.Generator) -> np.ndarray:
    """The next one to seven tokens of a sequence."""
    return tokens[done : done + int(rng.choice([1, 1, 2, 7]))]
