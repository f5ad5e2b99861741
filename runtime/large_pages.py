"""Weights on large pages: what a mapping has on small ones is moved, while kernels read it.

Two cores that stream weights through pages of 4 KiB wait for page tables: Llama of 1B in bfloat16,
a third of its file on small pages, generated 8.1 tokens a second, and 10.0 once moved (Granite
Rapids). How a file lies in the page cache is the kernel's choice and differs from write to write.
"""

import ctypes
import fcntl
import mmap
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from .background import start_in_background
from .tensors import LARGE_PAGE, Array, advise

_STRETCH = 8 * LARGE_PAGE  # moved at a time: what memory holds twice
_SETTINGS = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_NODES = Path("/sys/devices/system/node/online")
_MADV_POPULATE_READ = 22  # linux/mman-common.h, since 5.14
_MREMAP_MAYMOVE_FIXED = 3
_PAGE_IS_HUGE = 1 << 6  # linux/fs.h, since 6.7: mapped by a large page
_PAGEMAP_SCAN = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
)  # fmt: skip
_libc.mremap.restype = ctypes.c_void_p
_libc.mremap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p,
)  # fmt: skip
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_FAILED = ctypes.c_void_p(-1).value


def has_large_pages(settings: Path = _SETTINGS, nodes: Path = _NODES) -> bool:
    """Whether the machine gives large pages, and its memory is all one node's.

    With several nodes the moved pages would all lie on the node of the thread that moved them.
    """
    try:
        allowed, online = settings.read_text(), nodes.read_text().strip()
    except OSError:
        return False
    return "[never]" not in allowed and online == "0"


def move_in_background(memory: Array, name: str, delay: float) -> threading.Thread:
    """Move a read-only mapping to large pages on a thread that gives way to others, after `delay`
    seconds: the first token comes first.

    Where memory runs out the rest stays as it is.
    """

    def move() -> None:
        time.sleep(delay)
        with suppress(OSError):
            move_to_large_pages(memory)

    return start_in_background(f"large pages of {name}", move)


def move_to_large_pages(memory: Array) -> int:
    """Put copies of what lies on small pages in its place, on large ones; gives the bytes moved.

    `memory` is a whole read-only mapping (u8), which others may read meanwhile: a piece's bytes are
    the same before and after, and mremap(2) puts it in place between two reads. Raises OSError
    where the machine gives no more memory.
    """
    base = memory.ctypes.data
    first = -(-base // LARGE_PAGE) * LARGE_PAGE
    end = (base + memory.nbytes) // LARGE_PAGE * LARGE_PAGE
    moved = 0
    for begin in range(first, end, _STRETCH):
        stop = min(begin + _STRETCH, end)
        # A page that was never read is not mapped yet, by either size.
        with suppress(OSError):  # an older kernel
            advise(begin, stop - begin, _MADV_POPULATE_READ)
        for start, finish in _small(begin, stop):
            _move(start, finish - start)
            moved += finish - start
    return moved


def _small(begin: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of a range that no large page maps; all of it where the kernel can't tell."""
    regions = (ctypes.c_uint64 * (3 * ((end - begin) // LARGE_PAGE)))()
    arguments = (ctypes.c_uint64 * 12)(
        96, 0, begin, end, 0, ctypes.addressof(regions), len(regions) // 3, 0,
        0, _PAGE_IS_HUGE, 0, _PAGE_IS_HUGE,
    )  # fmt: skip
    count = 0
    with suppress(OSError), Path("/proc/self/pagemap").open("rb") as pages:
        count = fcntl.ioctl(pages, _PAGEMAP_SCAN, arguments, True)
    for index in range(count):
        start, finish = regions[3 * index], regions[3 * index + 1]
        if begin < start:
            yield begin, start
        begin = finish
    if begin < end:
        yield begin, end


def _move(begin: int, size: int) -> None:
    """Put a copy of `size` bytes at `begin`, on new pages, in their place."""
    taken = _map_anonymous(size + LARGE_PAGE)
    copy = -(-taken // LARGE_PAGE) * LARGE_PAGE
    with suppress(OSError):
        advise(copy, size, mmap.MADV_HUGEPAGE)
    ctypes.memmove(copy, begin, size)
    if _libc.mprotect(copy, size, mmap.PROT_READ):
        raise OSError(ctypes.get_errno(), f"mprotect of {size} bytes")
    if _libc.mremap(copy, size, size, _MREMAP_MAYMOVE_FIXED, begin) != begin:
        raise OSError(ctypes.get_errno(), f"mremap of {size} bytes")
    if copy > taken:
        _libc.munmap(taken, copy - taken)
    if taken + LARGE_PAGE > copy:
        _libc.munmap(copy + size, taken + LARGE_PAGE - copy)


def _map_anonymous(size: int) -> int:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    address = _libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
    if address == _FAILED:
        raise OSError(ctypes.get_errno(), f"mmap of {size} bytes")
    return int(address)
