"""The time that a command may take."""

from __future__ import annotations

import time
from collections.abc import Callable

Seconds = Callable[[], float]


class OutOfTime(Exception):
    """What was to be done has no time left."""


class Budget:
    """Seconds from when it is made, by a clock; `kept` of them are for what has to be done at the
    end.
    """

    def __init__(
        self, seconds: float = float("inf"), clock: Seconds = time.monotonic, kept: float = 0.0
    ) -> None:
        self.seconds, self.kept = seconds, kept
        self._clock, self._begin = clock, clock()

    @property
    def spent(self) -> float:
        """Seconds since it was made."""
        return self._clock() - self._begin

    @property
    def left(self) -> float:
        """Seconds that may yet be spent, 0 where there are none."""
        return max(0.0, self.seconds - self.kept - self.spent)
