"""Pages of the KV cache that sequences come to next, asked of the machine before a step needs them.

The caches of all layers come to new pages in the same step. Where free memory lies in pieces, as
beside a full page cache, a large page takes the machine milliseconds: Llama of 1B, whose 32 caches
have 2,048 tokens in one, took 180 to 260 ms for the token behind a prompt of 4,096, and 17 for the
next (Zen 4).
"""

import mmap
import threading
from collections.abc import Sequence
from contextlib import suppress

from .background import start_in_background
from .tensors import LARGE_PAGE, Array, advise

_MADV_POPULATE_WRITE = 23  # linux/mman-common.h, since 5.14


class PagesAhead:
    """The pages of caches [blocks, ...] of which blocks are used in the order of their numbers, at
    first. `reach` is told the highest of a step.
    """

    def __init__(self, caches: Sequence[Array]) -> None:
        self._caches = [c for c in caches if c.nbytes]
        self._blocks = min((len(c) for c in self._caches), default=0)
        widest = max((c.nbytes // len(c) for c in self._caches), default=LARGE_PAGE)
        self._stretch = max(1, LARGE_PAGE // widest)  # blocks of a page
        self._thread: threading.Thread | None = None
        self.forget()

    def forget(self) -> None:
        """Begin anew, for the pages were given back. The first steps take theirs themselves."""
        self._asked = self._stretch

    def reach(self, block: int) -> None:
        """A step writes to a block: where the last page asked for is half used, the next is asked
        for on a thread that gives way to others.
        """
        if block + self._stretch // 2 < self._asked or self._asked >= self._blocks:
            return
        if self._thread is not None and self._thread.is_alive():
            return
        low = max(self._asked, block + 1)
        self._asked = min(low + self._stretch, self._blocks)
        high = self._asked
        self._thread = start_in_background("pages ahead", lambda: self._ask(low, high))

    def _ask(self, low: int, high: int) -> None:
        for cache in self._caches:
            size = cache.nbytes // len(cache)
            first = (cache.ctypes.data + low * size) // mmap.PAGESIZE * mmap.PAGESIZE
            end = -(-(cache.ctypes.data + high * size) // mmap.PAGESIZE) * mmap.PAGESIZE
            with suppress(OSError):  # an older kernel: steps take their pages themselves
                advise(first, end - first, _MADV_POPULATE_WRITE)
