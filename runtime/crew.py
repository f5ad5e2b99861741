"""How many threads kernels use where other processes hold some of the cores.

A parallel kernel waits for the last of its threads. One whose core a neighbour holds comes a whole
time slice late, kernel after kernel: with one busy process beside two threads on two cores, 31
decode steps a second of a 4-bit model of 1B became 7. One thread, which the neighbour leaves in
peace, does 16.
"""

import time
from collections.abc import Callable
from types import TracebackType

WINDOW = 0.1  # seconds of steps that are looked at together
TOLERATED = 0.3  # cores that may be lost to others: a daemon's moments, page faults
PATIENCE = 3  # windows of loss before threads are given up: first steps map memory and wait for it
PAUSES = (1.0, 4.0)  # seconds until all threads are tried again: at first, and at most


class Crew:
    """The threads of one calling thread: all of `threads`, or fewer while cores are lost.

    A context manager around each step. Threads that wait for work spin, so what the process's time
    of use falls short of is what others took. `use` sets how many threads kernels have.
    """

    def __init__(
        self,
        threads: int,
        use: Callable[[int], object],
        clock: Callable[[], float] = time.perf_counter,
        used_time: Callable[[], float] = time.process_time,
    ) -> None:
        self.threads, self.used = threads, threads
        self._use, self._clock, self._used_time = use, clock, used_time
        self._seconds = self._busy = self._retry = 0.0
        self._pause, self._left = PAUSES[0], PATIENCE
        self._begun = (0.0, 0.0)

    def __enter__(self) -> None:
        self._begun = (self._clock(), self._used_time())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self.threads == 1:
            return
        now = self._clock()
        self._seconds += now - self._begun[0]
        self._busy += self._used_time() - self._begun[1]
        if self._seconds >= WINDOW:
            self._judge(now)

    def _judge(self, now: float) -> None:
        """Give up the cores that were lost; try all again after a pause, longer each time."""
        lost = self.used - self._busy / self._seconds
        self._seconds = self._busy = 0.0
        if self.used == self.threads:
            self._judge_all(lost, now)
        elif lost > TOLERATED and self.used > 1:
            self._set(_fewer(self.used, lost))
        elif now >= self._retry:
            self._set(self.threads)

    def _judge_all(self, lost: float, now: float) -> None:
        if lost <= TOLERATED:
            self._pause, self._left = PAUSES[0], PATIENCE
            return
        self._left -= 1
        if self._left <= 0:  # and stays so: whoever tries again knows at once
            self._retry = now + self._pause
            self._pause = min(2 * self._pause, PAUSES[1])
            self._set(_fewer(self.used, lost))

    def _set(self, count: int) -> None:
        self.used = count
        self._use(count)


def _fewer(used: int, lost: float) -> int:
    return max(1, used - max(1, round(lost)))
