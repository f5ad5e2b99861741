"""How values spread over buckets: what a histogram of a monitor is made of."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

# vLLM's buckets for what happens to blocks, in seconds.
BLOCK_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
BLOCK_SECONDS = (*BLOCK_SECONDS, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0)


class Counts(NamedTuple):
    """What was seen: per upper bound how many values are at most so large, how many there were, and
    their sum.
    """

    bounds: tuple[float, ...]
    below: tuple[int, ...]
    seen: int
    total: float


class Spread:
    """Counts values by buckets with these upper bounds, ascending."""

    def __init__(self, bounds: Sequence[float] = BLOCK_SECONDS) -> None:
        self._bounds = tuple(bounds)
        self._each = [0] * (len(self._bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        """See a value."""
        self._each[bisect_left(self._bounds, value)] += 1
        self._total += value

    def counts(self) -> Counts:
        """What was seen so far."""
        below, found = 0, list[int]()
        for count in self._each[:-1]:
            below += count
            found.append(below)
        return Counts(self._bounds, tuple(found), below + self._each[-1], self._total)
