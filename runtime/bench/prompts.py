"""What a benchmark asks: random token ids, prompts with a shared prefix, or a file's."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import RequestError


@dataclass(frozen=True)
class Ask:
    """A prompt and how many tokens should follow it."""

    prompt: tuple[int, ...] | str
    output_tokens: int


@dataclass(frozen=True)
class RandomPrompts:
    """Prompts of uniform random token ids; lengths vary by `range_ratio` to either side.

    The first `prefix` tokens are the same in all. `vocabulary` bounds the ids; the lowest ones
    are left out, where special tokens tend to be.
    """

    count: int
    input_tokens: int = 1024
    output_tokens: int = 128
    range_ratio: float = 0.0
    prefix: int = 0
    vocabulary: int = 1000
    seed: int = 0

    def asks(self) -> list[Ask]:
        """The same asks for the same fields."""
        generator = np.random.default_rng(self.seed)
        lowest = min(self.vocabulary // 2, 300)
        shared = generator.integers(lowest, self.vocabulary, self.prefix)
        found = []
        for _ in range(self.count):
            size, output = (self._length(generator, n) for n in self._lengths)
            own = generator.integers(lowest, self.vocabulary, size)
            found.append(Ask((*map(int, shared), *map(int, own)), output))
        return found

    @property
    def _lengths(self) -> tuple[int, int]:
        return self.input_tokens, self.output_tokens

    def _length(self, generator: np.random.Generator, middle: int) -> int:
        low = max(1, int(middle * (1 - self.range_ratio)))
        return int(generator.integers(low, int(middle * (1 + self.range_ratio)) + 1))


def file_asks(path: Path, count: int, output_tokens: int) -> list[Ask]:
    """The first `count` lines of a JSONL file with `prompt` and, if it likes, `output_tokens`."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip() and len(found) < count:
            try:
                fields = json.loads(line)
                found.append(Ask(fields["prompt"], fields.get("output_tokens", output_tokens)))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise RequestError(f"{path}:{number}: wanted an object with a prompt") from None
    if not found:
        raise RequestError(f"{path}: no prompts in it")
    return found
