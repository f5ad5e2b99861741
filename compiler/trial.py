"""A process that compiles the candidates of a kernel and times them, told what to do by lines of
JSON on its input.

It is a process of its own so that a candidate that crashes, or never ends, takes nothing with it.
Before it first runs a candidate it says which, so that whoever waits knows whom to blame.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..codegen.space import Sample
from ..codegen.tvm import build_candidates
from ..runtime.library import KernelLibrary
from ..runtime.tiles import allow_tiles
from .trial_arguments import Arguments
from .trial_requests import MINIMUM, Asked, answer_requests

Kernel = Callable[..., None]


class Trial:
    """The candidates of one kernel, compiled and loaded."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ferrule-tune-")
        path = Path(self._folder.name) / "kernels.so"
        asked = Asked.of(request)
        self.faults: Mapping[int, str] = build_candidates(
            asked.body, asked.target, asked.bucket, asked.choices, str(path)
        )
        self._library = KernelLibrary(path)
        self._library.enter_thread()
        self._arguments = Arguments(asked.arguments, asked.block, asked.indices)
        self._warm: set[tuple[int, Sample]] = set()

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
        kernels = {at: self._library[f"c{at}"] for at in which}
        copies = self._arguments.copies(sample, dims)
        for at in which:
            if (at, sample) not in self._warm:
                say(at)
                kernels[at](*copies[0])
                self._warm.add((at, sample))
        once = _seconds(kernels[which[0]], copies, 0, 1)
        calls = min(1000, max(1, round(MINIMUM / max(once, 1e-7))))
        found: dict[int, list[float]] = {at: [] for at in which}
        at_copy = 1
        for number in range(rounds):
            for at in which if number % 2 == 0 else list(reversed(which)):
                found[at].append(_seconds(kernels[at], copies, at_copy, calls))
                at_copy += calls
        return [found[at] for at in which]

    def close(self) -> None:
        """Remove what was compiled."""
        self._folder.cleanup()


def _seconds(kernel: Kernel, copies: Sequence[tuple[Any, ...]], first: int, calls: int) -> float:
    turns = [copies[(first + i) % len(copies)] for i in range(calls)]
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
