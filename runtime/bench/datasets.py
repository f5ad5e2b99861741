"""Where a benchmark's prompts come from, by the names that vLLM's benchmark has for them."""

import csv
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RequestError
from ..text import Text
from .prompts import Ask, RandomPrompts, file_asks
from .rows import read_rows

DATASETS = (
    "random",
    "prefix_repetition",
    "sharegpt",
    "sonnet",
    "burstgpt",
    "spec_bench",
    "hf",
    "custom",
)
_SHORTEST, _LONGEST, _MOST = 4, 1024, 2048  # tokens of a conversation that is taken, as in vLLM


@dataclass(frozen=True)
class Source:
    """What prompts are made of; fields that a dataset does not read are let be.

    Lengths count tokens. `output` None is as many as the dataset's own answers have, `prefixes`
    are as many different beginnings of `prefix` tokens. A `tokenizer` counts what is text.
    """

    name: str = "random"
    path: Path | None = None
    count: int = 1000
    input: int = 1024
    output: int | None = None
    range_ratio: float = 0.0
    prefix: int = 0
    prefixes: int = 10
    vocabulary: int = 1000
    category: str | None = None
    split: str = "train"
    tokenizer: Path | None = None
    seed: int = 0

    def asks(self) -> list[Ask]:
        """The prompts; the same for the same fields. Raises `RequestError` where a file is not what
        its dataset is.
        """
        if self.name not in DATASETS:
            raise RequestError(f"dataset {self.name!r}: wanted one of {', '.join(DATASETS)}")
        if self.name == "random":
            sizes = (self.input, self._output(128), self.range_ratio, self.prefix)
            return RandomPrompts(self.count, *sizes, self.vocabulary, self.seed).asks()
        if self.name == "prefix_repetition":
            return self._repeated()
        try:
            found = _FILES[self.name](self, self._file())
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise RequestError(f"{self.path}: no file of {self.name}: {error!r}") from error
        if not found:
            raise RequestError(f"{self.path}: no prompts in it")
        return found

    def _output(self, otherwise: int) -> int:
        return otherwise if self.output is None else self.output

    def _file(self) -> Path:
        if self.path is None:
            raise RequestError(f"dataset {self.name!r} needs --dataset-path")
        return self.path

    @property
    def _count_tokens(self) -> Callable[[str], int]:
        if self.tokenizer is None:
            raise RequestError(f"dataset {self.name!r} counts tokens: it needs --tokenizer DIR")
        text = Text(self.tokenizer)
        return lambda piece: len(text.encode(piece, add_special_tokens=False))

    def _repeated(self) -> list[Ask]:
        """As many prompts of each beginning, in a random order."""
        generator = np.random.default_rng(self.seed)
        lowest = min(self.vocabulary // 2, 300)

        def draw(size: int) -> tuple[int, ...]:
            return tuple(map(int, generator.integers(lowest, self.vocabulary, size)))

        beginnings = [draw(self.prefix) for _ in range(self.prefixes)]
        output = self._output(128)
        found = [
            Ask((*beginnings[n % self.prefixes], *draw(self.input)), output)
            for n in range(self.count)
        ]
        return [found[int(at)] for at in generator.permutation(self.count)]

    def _custom(self, path: Path) -> list[Ask]:
        return file_asks(path, self.count, self._output(256))

    def _sharegpt(self, path: Path) -> list[Ask]:
        """The first turns of conversations, and as many tokens as their answers have."""
        given = json.loads(path.read_text(encoding="utf-8"))
        turns = [c["conversations"] for c in given if len(c["conversations"]) >= 2]
        random.Random(self.seed).shuffle(turns)
        if self.output is not None:
            return [Ask(t[0]["value"], self.output) for t in turns[: self.count]]
        size, found = self._count_tokens, list[Ask]()
        for prompt, answer, *_ in turns:
            tokens, output = size(prompt["value"]), size(answer["value"])
            if min(tokens, output) >= _SHORTEST and tokens <= _LONGEST and tokens + output <= _MOST:
                found.append(Ask(prompt["value"], output))
            if len(found) == self.count:
                break
        return found

    def _sonnet(self, path: Path) -> list[Ask]:
        """Lines of a poem after a beginning that is the same for all."""
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        size, generator = self._count_tokens, random.Random(self.seed)
        mean = sum(map(size, lines)) / len(lines)
        shared = round(self.prefix / mean)
        own = max(1, round((self.input - self.prefix) / mean))
        base = "Pick as many lines as you can from these poem lines:\n" + "".join(lines[:shared])
        return [
            Ask(base + "".join(generator.choices(lines, k=own)), self._output(150))
            for _ in range(self.count)
        ]

    def _burstgpt(self, path: Path) -> list[Ask]:
        """Random tokens, as many as requests of a real service had."""
        with path.open(encoding="utf-8", newline="") as file:
            rows = [r for r in csv.DictReader(file) if int(r["Response tokens"]) > 0]
        random.Random(self.seed).shuffle(rows)
        generator = np.random.default_rng(self.seed)
        lowest = min(self.vocabulary // 2, 300)
        found = []
        for row in rows[: self.count]:
            ids = generator.integers(lowest, self.vocabulary, int(row["Request tokens"]))
            found.append(Ask(tuple(map(int, ids)), self._output(int(row["Response tokens"]))))
        return found

    def _hf(self, path: Path) -> list[Ask]:
        """What was asked in rows, in a random order, and as many tokens as their answers have."""
        rows = list(read_rows(path, self.split))
        random.Random(self.seed).shuffle(rows)
        if self.output is not None:
            return [Ask(row.prompt, self.output) for row in rows[: self.count]]
        size = self._count_tokens
        found = ((row.prompt, size(row.answer)) for row in rows if row.answer)
        return [Ask(p, n) for p, n in islice(((p, n) for p, n in found if n), self.count)]

    def _spec_bench(self, path: Path) -> list[Ask]:
        """The first turns of questions, of one category or of all."""
        lines = path.read_text(encoding="utf-8").splitlines()
        given: Sequence[Any] = [json.loads(line) for line in lines if line.strip()]
        wanted = [g for g in given if self.category in (None, g["category"])]
        return [Ask(g["turns"][0], self._output(256)) for g in wanted[: self.count]]


_FILES: dict[str, Callable[[Source, Path], list[Ask]]] = {
    "custom": Source._custom,
    "sharegpt": Source._sharegpt,
    "sonnet": Source._sonnet,
    "burstgpt": Source._burstgpt,
    "spec_bench": Source._spec_bench,
    "hf": Source._hf,
}
