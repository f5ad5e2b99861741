"""Linears by experts: y[m, n] = sum over k of x[m, k] w[e, n, k] with e = index[m].

A few rows take the weights of their experts one by one; more are sorted by expert first, and a
program multiplies a tile of rows of one expert. Only experts that have rows are read.
"""

import triton
import triton.language as tl

from .codes import tile_of_codes
from .gemm import IEEE, rows_of_weights
from .gemv import row_of_sums
from .gemv_codes import row_of_codes
from .ragged import ragged_tile


@triton.jit
def sort_rows(env, index, order, starts, M, E, BLOCK: tl.constexpr = 1024):
    """order i32[M]: the rows by their experts, as they come; starts i32[E + 1]: where each expert's
    begin.

    index[M] of whole numbers below E; grid (E,).
    """
    expert = tl.program_id(0)
    place = 0
    for first in range(0, M, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        given = tl.load(index + rows, mask=rows < M, other=E)
        place += tl.sum((given < expert).to(tl.int32), axis=0)

    tl.store(starts + expert, place)
    for first in range(0, M, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        mine = tl.load(index + rows, mask=rows < M, other=E) == expert
        count = mine.to(tl.int32)
        tl.store(order + place + tl.cumsum(count, axis=0) - 1, rows, mask=mine)
        place += tl.sum(count, axis=0)

    if expert == E - 1:
        tl.store(starts + E, place)


@triton.jit
def with_bias(sums, bias, expert, cols, N: tl.constexpr, WIDE: tl.constexpr, PART: tl.constexpr):
    """sums and bias[expert, PART WIDE + cols], where there is a bias[E, N]."""
    if bias is not None:
        at = bias + expert * N + PART * WIDE + cols
        sums += tl.load(at, mask=cols < WIDE, other=0).to(tl.float32)
    return sums


@triton.jit
def store_parts(
    env, first, second, bias, expert, rows, cols, mask, STORE: tl.constexpr, PARTS: tl.constexpr,
    N: tl.constexpr,
):  # fmt: skip
    """What an expert's sums become: its bias added, and the hook."""
    WIDE: tl.constexpr = N // PARTS
    first = with_bias(first, bias, expert, cols, N, WIDE, 0)
    if PARTS == 1:
        STORE(env, (first,), rows, cols, mask)
    else:
        second = with_bias(second, bias, expert, cols, N, WIDE, 1)
        STORE(env, (first, second), rows, cols, mask)


@triton.jit
def expert_gemv(
    env, w, index, bias, M, N: tl.constexpr, K: tl.constexpr,
    LOAD_X: tl.constexpr, STORE: tl.constexpr, PARTS: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """sums[p][n] of one row m by the weights w[E, N, K] of its expert, bias[E, N] or None.

    Grid (cdiv(N / PARTS, BN), M).
    """
    WIDE: tl.constexpr = N // PARTS
    cols = tl.program_id(0) * BN + tl.arange(0, BN)
    row = tl.program_id(1)
    expert = tl.load(index + row).to(tl.int64)
    own = w + expert * (N * K)
    first, second = row_of_sums(env, own, row, cols, LOAD_X, PARTS, WIDE, K, BN, BK)
    store_parts(env, first, second, bias, expert, row, cols, cols < WIDE, STORE, PARTS, N)


@triton.jit
def expert_gemv_codes(
    env, codes, scale, zeros, index, bias, M, N: tl.constexpr, K: tl.constexpr,
    LOAD_X: tl.constexpr, STORE: tl.constexpr, PARTS: tl.constexpr,
    BITS: tl.constexpr, G: tl.constexpr, OFFSET: tl.constexpr, PACK: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """expert_gemv by codes[E, N, J, G] as in gemv_codes, scale and zeros [E, N, J]."""
    WIDE: tl.constexpr = N // PARTS
    J: tl.constexpr = triton.cdiv(K, G)
    cols = tl.program_id(0) * BN + tl.arange(0, BN)
    row = tl.program_id(1)
    expert = tl.load(index + row).to(tl.int64)
    own = codes + expert * (N * (J * G * BITS // 8))
    scales = scale + expert * (N * J)
    offsets = zeros + expert * (N * J) if zeros is not None else None
    first, second = row_of_codes(
        env, own, scales, offsets, M, row, cols, LOAD_X, PARTS, WIDE, K, BITS, G, OFFSET, PACK, BN,
        BK,
    )  # fmt: skip
    store_parts(env, first, second, bias, expert, row, cols, cols < WIDE, STORE, PARTS, N)


@triton.jit
def expert_rows(order, starts, M, E, BM: tl.constexpr):
    """(expert, rows[BM], whether each is there) of the tile of sorted rows program_id(0)."""
    expert, first = ragged_tile(starts, tl.program_id(0), E, BM)
    at = first + tl.arange(0, BM)
    valid = at < tl.load(starts + expert + 1)
    return expert, tl.load(order + at, mask=valid, other=0), valid


@triton.jit
def expert_gemm(
    env, w, order, starts, bias, M, E, N: tl.constexpr, K: tl.constexpr,
    LOAD_X: tl.constexpr, STORE: tl.constexpr, PARTS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr = IEEE,
):  # fmt: skip
    """sums[p][n, m] of a tile of rows of one expert by its weights w[E, N, K], bias[E, N] or None;
    order and starts from sort_rows.

    Grid (M // BM + E, cdiv(N / PARTS, BN)).
    """
    tl.static_assert(PARTS == 1 or PARTS == 2, "one part or two")
    WIDE: tl.constexpr = N // PARTS
    EVEN_K: tl.constexpr = K % BK == 0
    expert, row, there = expert_rows(order, starts, M, E, BM)
    rows, valid = row[None, :], there[None, :]
    if tl.max(there.to(tl.int32), axis=0) > 0:
        own = w + expert.to(tl.int64) * (N * K)
        cols = (tl.program_id(1) * BN + tl.arange(0, BN))[:, None]
        first = tl.zeros((BN, BM), tl.float32)
        second = tl.zeros((BN, BM), tl.float32)
        for k in range(0, K, BK):
            ks = k + tl.arange(0, BK)
            mask = valid if EVEN_K else valid & (ks < K)[:, None]
            x = LOAD_X(env, rows, ks[:, None], mask)
            a = rows_of_weights(own, cols, ks[None, :], WIDE, K, BN, EVEN_K).to(x.dtype)
            first = tl.dot(a, x, first, input_precision=PRECISION)
            if PARTS == 2:
                b = rows_of_weights(own + WIDE * K, cols, ks[None, :], WIDE, K, BN, EVEN_K)
                second = tl.dot(b.to(x.dtype), x, second, input_precision=PRECISION)
        mask = valid & (cols < WIDE)
        store_parts(env, first, second, bias, expert, rows, cols, mask, STORE, PARTS, N)


@triton.jit
def expert_gemm_codes(
    env, codes, scale, zeros, order, starts, bias, M, E, N: tl.constexpr, K: tl.constexpr,
    LOAD_X: tl.constexpr, STORE: tl.constexpr, PARTS: tl.constexpr,
    BITS: tl.constexpr, G: tl.constexpr, OFFSET: tl.constexpr, PACK: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    INTERLEAVED: tl.constexpr = False, PRECISION: tl.constexpr = IEEE, ROUNDED: tl.constexpr = 0,
):  # fmt: skip
    """expert_gemm by codes[E, N, J, G] as in gemm_codes, scale and zeros [E, N, J]."""
    WIDE: tl.constexpr = N // PARTS
    J: tl.constexpr = triton.cdiv(K, G)
    expert, row, there = expert_rows(order, starts, M, E, BM)
    rows, valid = row[None, :], there[None, :]
    if tl.max(there.to(tl.int32), axis=0) > 0:
        number = expert.to(tl.int64)
        own = codes + number * (N * (J * G * BITS // 8))
        scales = scale + number * (N * J)
        offsets = zeros + number * (N * J) if zeros is not None else None
        cols = (tl.program_id(1) * BN + tl.arange(0, BN))[:, None]
        first, second = tile_of_codes(
            env, own, scales, offsets, rows, valid, cols, 0, K, LOAD_X, PARTS, WIDE, K, BITS, G,
            OFFSET, PACK, INTERLEAVED, BM, BN, BK, PRECISION, ROUNDED,
        )  # fmt: skip
        mask = valid & (cols < WIDE)
        store_parts(env, first, second, bias, expert, rows, cols, mask, STORE, PARTS, N)
