"""How many threads kernels use where other processes hold some of the cores.

A parallel kernel waits for the last of its threads. One whose core a neighbour holds comes a whole
time slice late, kernel after kernel: with one busy process beside two threads on two cores, 31
decode steps a second of a 4-bit model of 1B became 7. One thread, which the neighbour leaves in
peace, does 16.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType

WINDOW = 0.1  # seconds of steps that are looked at together
TOLERATED = 0.3  # cores that may be lost to others: a daemon's moments
PATIENCE = 3  # windows of loss before threads are given up: first steps map memory and wait for it
PAUSES = (1.0, 4.0)  # seconds until all threads are tried again: at first, and at most


TASKS = Path("/proc/self/task")


class Waits:
    """How long some threads of this process were ready to run and had no core: the second number
    of Linux's schedstat, in nanoseconds. Nothing where the kernel does not keep it.
    """

    def __init__(self, threads: Iterable[int]) -> None:
        self._paths = tuple(TASKS / str(t) / "schedstat" for t in sorted(threads))

    @staticmethod
    def of_workers(hire: Callable[[], object]) -> "Waits":
        """Of the calling thread and those that `hire` begins."""
        before = _threads()
        hire()
        return Waits((_threads() - before) | {threading.get_native_id()})

    def __call__(self) -> float:
        """Seconds, of all of them together."""
        return sum(map(_waited, self._paths)) / 1e9


def _threads() -> set[int]:
    try:
        return {int(name) for name in os.listdir(TASKS)}
    except OSError:  # no Linux
        return set()


def _waited(path: Path) -> int:
    try:
        return int(path.read_text().split()[1])
    except (OSError, IndexError):
        return 0


class Crew:
    """The threads of one calling thread: all of `threads`, or fewer while cores are lost.

    A context manager around each step. `waited` says how many seconds they have waited for a core
    so far, which is what others took; what they sleep, for a step has less to do than they could,
    is nobody's. `use` sets how many threads kernels have.
    """

    def __init__(
        self,
        threads: int,
        use: Callable[[int], object],
        waited: Callable[[], float],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.threads, self.used = threads, threads
        self._use, self._waited, self._clock = use, waited, clock
        self._seconds = self._retry = self._begun = 0.0
        self._before = waited()
        self._pause, self._left = PAUSES[0], PATIENCE

    def __enter__(self) -> None:
        self._begun = self._clock()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self.threads == 1:
            return
        now = self._clock()
        self._seconds += now - self._begun
        if self._seconds >= WINDOW:
            self._judge(now)

    def _judge(self, now: float) -> None:
        """Give up the cores that were lost; try all again after a pause, longer each time."""
        waited = self._waited()
        lost = (waited - self._before) / self._seconds
        self._seconds, self._before = 0.0, waited
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
