"""The largest of a row of sums, without the row ever being stored: a program's best column goes to
memory, and a second launch takes the best of those. Of equal values the first column is the best.
"""

import triton
import triton.language as tl

from .gemm import IEEE, row_of_sums, rows_of_weights


@triton.jit
def store_best(values, best, column, first, rows, row_mask, mask, M):
    """Column and value of the largest of values along the first axis, columns from `first` on, to
    best[program_id(0), rows] and column[program_id(0), rows].
    """
    held = tl.where(mask, values, float("-inf"))
    largest, place = tl.max(held, axis=0, return_indices=True)
    at = tl.program_id(0) * M + rows
    tl.store(best + at, largest, mask=row_mask)
    tl.store(column + at, first + place, mask=row_mask)


@triton.jit
def gemm_best(
    env, w, best, column, M, N: tl.constexpr, K: tl.constexpr,
    LOAD_X: tl.constexpr, VALUE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr = IEEE,
):  # fmt: skip
    """The largest VALUE(env, sums, rows, cols, mask), a float32, of a tile of BN columns and BM
    rows of sum over k of x[m, k] w[n, k]: f32 best[cdiv(N, BN), M], i32 column[cdiv(N, BN), M].

    Grid (cdiv(N, BN), cdiv(M, BM)).
    """
    EVEN_K: tl.constexpr = K % BK == 0
    cols = (tl.program_id(0) * BN + tl.arange(0, BN))[:, None]
    row = tl.program_id(1) * BM + tl.arange(0, BM)
    rows = row[None, :]
    sums = tl.zeros((BN, BM), tl.float32)
    for k in range(0, K, BK):
        ks = k + tl.arange(0, BK)
        mask = (rows < M) if EVEN_K else (rows < M) & (ks < K)[:, None]
        x = LOAD_X(env, rows, ks[:, None], mask)
        a = rows_of_weights(w, cols, ks[None, :], N, K, BN, EVEN_K).to(x.dtype)
        sums = tl.dot(a, x, sums, input_precision=PRECISION)

    inside = (rows < M) & (cols < N)
    values = VALUE(env, (sums,), rows, cols, inside)
    first = tl.program_id(0) * BN
    store_best(values, best, column, first, row, row < M, inside, M)


@triton.jit
def gemv_best(
    env, w, best, column, M, N: tl.constexpr, K: tl.constexpr,
    LOAD_X: tl.constexpr, VALUE: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """gemm_best for one row m, as in gemv. Grid (cdiv(N, BN), M)."""
    cols = tl.program_id(0) * BN + tl.arange(0, BN)
    row = tl.program_id(1)
    sums, _ = row_of_sums(env, w, row, cols, LOAD_X, 1, N, K, BN, BK)
    inside = cols < N
    values = VALUE(env, (sums,), row, cols, inside)
    first = tl.program_id(0) * BN
    store_best(values, best, column, first, row, row < M, inside, M)


@triton.jit
def best_of_tiles(best, column, result, M, TILES: tl.constexpr, BLOCK: tl.constexpr = 1024):
    """result[m] = column[t, m] for the t of the largest best[t, m], the first where several are.

    Grid (M,).
    """
    row = tl.program_id(0)
    largest, chosen = float("-inf"), 0
    for first in range(0, TILES, BLOCK):
        tiles = first + tl.arange(0, BLOCK)
        held = tl.load(best + tiles * M + row, mask=tiles < TILES, other=float("-inf"))
        most, place = tl.max(held, axis=0, return_indices=True)
        chosen = tl.where(most > largest, first + place, chosen)
        largest = tl.maximum(most, largest)
    tl.store(result + row, tl.load(column + chosen * M + row).to(result.dtype.element_ty))


@triton.jit
def top_of_chunk(
    env, values, columns, M, N, VALUE: tl.constexpr, TOP: tl.constexpr, BLOCK: tl.constexpr
):
    """The TOP largest VALUE(env, row, cols, mask) of BLOCK columns of a row, largest first and of
    equal ones the first: f32 values[M, cdiv(N, BLOCK), TOP], i32 columns likewise; -inf and 0 where
    there are no more.

    Grid (cdiv(N, BLOCK), M).
    """
    chunk, row = tl.program_id(0), tl.program_id(1)
    lanes = tl.arange(0, BLOCK)
    cols = chunk * BLOCK + lanes
    held = VALUE(env, row, cols, cols < N).to(tl.float32)
    held = tl.where(cols < N, held, float("-inf"))
    at = (row * tl.num_programs(0) + chunk) * TOP
    for i in range(TOP):
        largest, place = tl.max(held, axis=0, return_indices=True)
        tl.store(values + at + i, largest)
        column = tl.where(largest == float("-inf"), 0, chunk * BLOCK + place)
        tl.store(columns + at + i, column)
        held = tl.where(lanes == place, float("-inf"), held)


@triton.jit
def top_of_chunks(
    values, columns, top_values, top_columns, CHUNKS: tl.constexpr, TOP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The TOP largest of what top_of_chunk left of a row: top_values[M, TOP], top_columns[M, TOP].

    BLOCK is CHUNKS TOP filled up to a power of two. Grid (M,).
    """
    row = tl.program_id(0)
    lanes = tl.arange(0, BLOCK)
    at = row * (CHUNKS * TOP) + lanes
    held = tl.load(values + at, mask=lanes < CHUNKS * TOP, other=float("-inf"))
    for i in range(TOP):
        largest, place = tl.max(held, axis=0, return_indices=True)
        tl.store(top_values + row * TOP + i, largest.to(top_values.dtype.element_ty))
        column = tl.load(columns + row * (CHUNKS * TOP) + place)
        tl.store(top_columns + row * TOP + i, column.to(top_columns.dtype.element_ty))
        held = tl.where(lanes == place, float("-inf"), held)
