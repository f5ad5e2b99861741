"""What a cache's blocks live through, for a monitor: how long each is kept, and for what."""

import time
from collections.abc import Callable

from .spread import Spread


class BlockTimes:
    """Times of `size` blocks, in seconds of the clock.

    A block's life goes from when it is taken to when its content is given up for another; before
    that it is idle since nobody held it any more. A gap is the time from then to when somebody
    finds it again.
    """

    def __init__(self, size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.lifetime, self.idle, self.gap = Spread(), Spread(), Spread()
        self._clock = clock
        self._born = [0.0] * size
        self._left = [0.0] * size

    def take(self, blocks: list[int]) -> None:
        """Blocks were allocated."""
        now = self._clock()
        for block in blocks:
            self._born[block] = now

    def leave(self, block: int) -> None:
        """A block with content is held by nobody."""
        self._left[block] = self._clock()

    def find(self, block: int) -> None:
        """Somebody holds a block again that nobody did."""
        self.gap.add(self._clock() - self._left[block])

    def evict(self, block: int) -> None:
        """A block's content is given up."""
        now = self._clock()
        self.lifetime.add(now - self._born[block])
        self.idle.add(now - self._left[block])
