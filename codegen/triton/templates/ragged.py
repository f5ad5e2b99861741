"""Tiles of runs of rows: a sequence's tokens, an expert's rows."""

import triton
import triton.language as tl


@triton.jit
def ragged_tile(starts, number, N, ROWS: tl.constexpr):
    """(run, first row) of a tile of ROWS rows by its number, where run n is rows starts[n] to
    starts[n + 1], and starts i32[N + 1].

    Run n has the tiles from starts[n] // ROWS + n on: as many as it needs, or one too many, whose
    first row is beyond its own. All runs together have starts[N] // ROWS + N.
    """
    low = tl.zeros((), tl.int32)  # a tensor even where one run leaves nothing to look for
    high = low + N
    while high - low > 1:
        middle = (low + high) // 2
        begins = tl.load(starts + middle) // ROWS + middle
        is_before = begins <= number
        low = tl.where(is_before, middle, low)
        high = tl.where(is_before, high, middle)
    start = tl.load(starts + low)
    return low, start + (number - start // ROWS - low) * ROWS


@triton.jit
def run_of(starts, row, N):
    """The run that a row is in; see ragged_tile."""
    low = tl.zeros((), tl.int32)
    high = low + N
    while high - low > 1:
        middle = (low + high) // 2
        is_before = tl.load(starts + middle) <= row
        low = tl.where(is_before, middle, low)
        high = tl.where(is_before, high, middle)
    return low
