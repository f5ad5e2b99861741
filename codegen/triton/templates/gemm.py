"""Linears: y[m, n] = sum over k of x[m, k] w[n, k], for many rows, for few, for one.

What a template reads as x and what becomes of its sums is up to its hooks. With PARTS 2 a program
makes the sums of column n and of column n + N / 2 together, so that a gate meets what it gates
before anything is stored.
"""

import triton
import triton.language as tl

# Triton 3.6 takes no bare string as the default of a function that another calls.
IEEE = tl.constexpr("ieee")


@triton.jit
def grouped_tile(number, tiles_m, tiles_n, GROUP: tl.constexpr):
    """The (row, column) of a tile by its number: GROUP rows of tiles go column by column, so that
    programs which run together read few tiles of x and w, and those from the cache.
    """
    wide = GROUP * tiles_n
    first = number // wide * GROUP
    high = tl.minimum(tiles_m - first, GROUP)
    return first + number % wide % high, number % wide // high


@triton.jit
def rows_of_weights(
    w, cols, ks, N: tl.constexpr, K: tl.constexpr, BN: tl.constexpr, EVEN_K: tl.constexpr
):
    """w[cols, ks] of w[.., K], 0 from column N and from k = K on; cols and ks broadcast.

    EVEN_K: no k beyond K is asked for.
    """
    at = w + cols.to(tl.int64) * K + ks
    if EVEN_K and N % BN == 0:
        value = tl.load(at)
    elif EVEN_K:
        value = tl.load(at, mask=cols < N, other=0.0)
    else:
        value = tl.load(at, mask=(cols < N) & (ks < K), other=0.0)
    return value


@triton.jit
def gemm(
    env,
    w,
    M,
    N: tl.constexpr,
    K: tl.constexpr,
    LOAD_X: tl.constexpr,
    STORE: tl.constexpr,
    PARTS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr = 8,
    PRECISION: tl.constexpr = IEEE,
):
    """sums[p][m, n] = sum over k of x[m, k] w[p N / PARTS + n, k].

    A tile of BM rows and BN columns by w[N, K]; grid (cdiv(M, BM) * cdiv(N / PARTS, BN),).
    PRECISION says how float32 is multiplied. Weights of a narrower float than x are widened; float8
    by float8 is multiplied as it is, and scales are the hook's.
    """
    tl.static_assert(PARTS == 1 or PARTS == 2, "one part or two")
    WIDE: tl.constexpr = N // PARTS
    EVEN_K: tl.constexpr = K % BK == 0
    tile_m, tile_n = grouped_tile(tl.program_id(0), tl.cdiv(M, BM), tl.cdiv(WIDE, BN), GROUP)
    rows = (tile_m * BM + tl.arange(0, BM))[:, None]
    cols = tile_n * BN + tl.arange(0, BN)

    first = tl.zeros((BM, BN), tl.float32)
    second = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        ks = k + tl.arange(0, BK)
        mask = (rows < M) if EVEN_K else (rows < M) & (ks < K)[None, :]
        x = LOAD_X(env, rows, ks[None, :], mask)
        a = rows_of_weights(w, cols[None, :], ks[:, None], WIDE, K, BN, EVEN_K).to(x.dtype)
        first = tl.dot(x, a, first, input_precision=PRECISION)
        if PARTS == 2:
            beside = w + WIDE * K
            b = rows_of_weights(beside, cols[None, :], ks[:, None], WIDE, K, BN, EVEN_K).to(x.dtype)
            second = tl.dot(x, b, second, input_precision=PRECISION)

    sums = (first,) if PARTS == 1 else (first, second)
    STORE(env, sums, rows, cols[None, :], (rows < M) & (cols < WIDE)[None, :])


@triton.jit
def gemm_few(
    env,
    w,
    partial,
    M,
    N: tl.constexpr,
    K: tl.constexpr,
    LOAD_X: tl.constexpr,
    STORE: tl.constexpr,
    PARTS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SPLIT: tl.constexpr = 1,
    PRECISION: tl.constexpr = IEEE,
):
    """gemm for few rows: sums[p][n, m], the weights on the side of the tile that matrix units make
    long, so that few rows leave few of them idle.

    k is cut into SPLIT stretches, whatever the rows; their sums go to partial f32[SPLIT, M, N], and
    gather_splits adds them. With SPLIT 1 partial is None and STORE has the sums at once. Grid
    (cdiv(N / PARTS, BN), cdiv(M, BM), SPLIT).
    """
    tl.static_assert(PARTS == 1 or PARTS == 2, "one part or two")
    WIDE: tl.constexpr = N // PARTS
    DEEP: tl.constexpr = triton.cdiv(triton.cdiv(K, BK), SPLIT) * BK
    EVEN_K: tl.constexpr = K % BK == 0 and (K // BK) % SPLIT == 0
    cols = (tl.program_id(0) * BN + tl.arange(0, BN))[:, None]
    rows = (tl.program_id(1) * BM + tl.arange(0, BM))[None, :]
    split = tl.program_id(2)

    first = tl.zeros((BN, BM), tl.float32)
    second = tl.zeros((BN, BM), tl.float32)
    for k in range(0, DEEP, BK):
        ks = split * DEEP + k + tl.arange(0, BK)
        mask = (rows < M) if EVEN_K else (rows < M) & (ks < K)[:, None]
        x = LOAD_X(env, rows, ks[:, None], mask)
        a = rows_of_weights(w, cols, ks[None, :], WIDE, K, BN, EVEN_K).to(x.dtype)
        first = tl.dot(a, x, first, input_precision=PRECISION)
        if PARTS == 2:
            beside = w + WIDE * K
            b = rows_of_weights(beside, cols, ks[None, :], WIDE, K, BN, EVEN_K).to(x.dtype)
            second = tl.dot(b, x, second, input_precision=PRECISION)

    inside = (rows < M) & (cols < WIDE)
    if SPLIT == 1:
        STORE(env, (first,) if PARTS == 1 else (first, second), rows, cols, inside)
    else:
        at = partial + (split * M + rows).to(tl.int64) * N + cols
        tl.store(at, first, mask=inside)
        if PARTS == 2:
            tl.store(at + WIDE, second, mask=inside)


@triton.jit
def gather_splits(
    env,
    partial,
    M,
    N: tl.constexpr,
    STORE: tl.constexpr,
    PARTS: tl.constexpr,
    SPLIT: tl.constexpr,
    BN: tl.constexpr = 256,
):
    """sums[p][n] = sum over s of partial[s, m, p N / PARTS + n], in the order of s.

    partial f32[SPLIT, M, N]; grid (M, cdiv(N / PARTS, BN)): a grid is longest along its first axis.
    """
    WIDE: tl.constexpr = N // PARTS
    row = tl.program_id(0)
    cols = tl.program_id(1) * BN + tl.arange(0, BN)
    inside = cols < WIDE

    first = tl.zeros((BN,), tl.float32)
    second = tl.zeros((BN,), tl.float32)
    for split in range(SPLIT):
        at = partial + (split * M + row).to(tl.int64) * N + cols
        first += tl.load(at, mask=inside, other=0.0)
        if PARTS == 2:
            second += tl.load(at + WIDE, mask=inside, other=0.0)

    STORE(env, (first,) if PARTS == 1 else (first, second), row, cols, inside)
