"""Pages of caches are there before a step comes to them."""

import ctypes

import numpy as np
import pytest
from ferrule.runtime.pages_ahead import PagesAhead
from ferrule.runtime.tensors import LARGE_PAGE, allocate_together


def resident(cache, block):
    """Whether the memory of a block is there: mincore(2) of its first page."""
    at = cache[block].ctypes.data // 4096 * 4096
    found = ctypes.c_ubyte(0)
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(at), 4096, ctypes.byref(found)) == 0
    return found.value & 1


def caches(blocks, *bytes_):
    return allocate_together([("u8", (blocks, size)) for size in bytes_])


def test_the_next_page_is_asked_for_where_half_of_the_last_is_used():
    wide, narrow = caches(40, LARGE_PAGE // 8, 4096)
    ahead = PagesAhead([wide, narrow])
    for block in range(4):
        wide[block] = narrow[block] = 1
        ahead.reach(block)
    assert ahead._thread is None
    ahead.reach(4)
    ahead._thread.join()
    assert all(resident(wide, b) and resident(narrow, b) for b in range(8, 16))
    assert not resident(wide, 24)
    first = ahead._thread
    ahead.reach(11)
    assert ahead._thread is first, "the page was there already"
    ahead.reach(12)
    ahead._thread.join()
    assert resident(wide, 16) and resident(wide, 23) and not resident(wide, 32)
    assert not wide[4:].any() and wide[3].all()


def test_a_jump_asks_for_what_comes_behind_it():
    (cache,) = caches(64, LARGE_PAGE // 8)
    ahead = PagesAhead([cache])
    ahead.reach(30)
    ahead._thread.join()
    assert not resident(cache, 16) and resident(cache, 32)
    ahead.reach(63)
    assert ahead._asked <= 64
    ahead.forget()
    ahead.reach(0)
    assert ahead._asked == 8


@pytest.mark.parametrize("given", [[], [np.zeros((0, 16), np.uint8)]])
def test_without_caches_nothing_is_asked_for(given):
    ahead = PagesAhead(given)
    ahead.reach(5)
    assert ahead._thread is None
