"""A process that compiles the candidates of a kernel and times them, told what to do by lines of
JSON on its input.

It is a process of its own so that a candidate that crashes, or never ends, takes nothing with it.
Before it first runs a candidate it says which, so that whoever waits knows whom to blame.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..codegen.space import Choice, Sample
from ..codegen.tvm import build_candidates
from ..runtime.library import KernelLibrary
from ..runtime.tiles import allow_tiles
from .trial_arguments import Arguments
from .trial_requests import MINIMUM, Asked, answer_requests

Kernel = Callable[..., None]


class Trial:
    """The candidates of one kernel: each a library in the folder that it was asked for."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._arguments = Arguments(asked.arguments, asked.block, asked.indices)
        self._libraries: dict[int, KernelLibrary] = {}
        self._warm: set[tuple[int, Sample]] = set()

    def compile(self, choices: Mapping[int, Choice]) -> Mapping[int, str]:
        """Compile candidates; gives what is wrong with those that cannot be used."""
        asked, faults = self._asked, dict[int, str]()
        for at, choice in choices.items():
            wrong = build_candidates(
                asked.body, asked.target, asked.bucket, [choice], str(self._path(at))
            )
            faults |= dict.fromkeys([at], wrong[0]) if wrong else {}
        return faults

    def _path(self, at: int) -> Path:
        return self._asked.folder / f"c{at}.so"

    def times(
        self,
        which: Sequence[int],
        sample: Sample,
        dims: Mapping[str, int],
        rounds: int,
        say: Callable[[int], None],
    ) -> list[list[float]]:
        """Seconds of one call of each candidate, in rounds that go forth and back through them.

        Calls take their weights and caches from one copy after another, so that they come from
        memory, as they do in a step whose other layers have pushed them out of the caches.
        """
        copies = self._arguments.copies(sample, dims)
        for at in which:
            if (at, sample) not in self._warm:
                say(at)
                with self._kernel(at) as kernel:
                    kernel(*copies[0])
                self._warm.add((at, sample))
        with self._kernel(which[0]) as kernel:
            once = _seconds(kernel, copies, 0, 1)
        calls = min(1000, max(1, round(MINIMUM / max(once, 1e-7))))
        found: dict[int, list[float]] = {at: [] for at in which}
        at_copy = 1
        for number in range(rounds):
            for at in which if number % 2 == 0 else list(reversed(which)):
                with self._kernel(at) as kernel:
                    found[at].append(_seconds(kernel, copies, at_copy, calls))
                at_copy += calls
        return [found[at] for at in which]

    @contextmanager
    def _kernel(self, at: int) -> Iterator[Kernel]:
        """A candidate with workers at its side: those of the others would wait on the cores that it
        runs on.
        """
        if at not in self._libraries:
            self._libraries[at] = KernelLibrary(self._path(at))
        library = self._libraries[at]
        library.enter_thread()
        try:
            yield library["c0"]
        finally:
            library.leave_thread()

    def close(self) -> None:
        """Nothing is held that the process does not end with."""


def _seconds(kernel: Kernel, copies: Sequence[tuple[Any, ...]], first: int, calls: int) -> float:
    turns = [copies[(first + i) % len(copies)] for i in range(calls)]
    kernel(*copies[(first - 1) % len(copies)])  # workers that have just been hired are awake then
    begin = time.perf_counter()
    for arguments in turns:
        kernel(*arguments)
    return (time.perf_counter() - begin) / calls


def main() -> None:
    """Answer requests until the input ends."""
    allow_tiles()  # a target without tiles runs as well without them
    answer_requests(Trial)


if __name__ == "__main__":
    main()
