"""Linears by codes of few bits: y[m, n] = sum over k of x[m, k] (q[n, k] - z[n, j]) s[n, j], where
group j holds G consecutive k.

A code becomes a float of x's dtype by its bits alone, BASE too large: no conversion, and exact. The
difference is made good group by group:

sum_k x (q - z) s = s (sum_k x (q + BASE) - (z + BASE) sum_k x)

so that scales and zeros touch sums, never weights, and nothing is rounded before the result. With
ROUNDED weights are made whole instead, in registers, and rounded to x's dtype: less work where many
rows share them, and groups may have any size.

Codes u8[N, J, G] or, with BITS 4, two to a byte (low bits first), J = cdiv(K, G); scale[N, J],
zeros u8[N, J] or None for OFFSET. PACK codes are read together: code i of a word is k = PACK w + i
of word w, or, where weights are INTERLEAVED (ferrule.codegen.backend.Layout with PACK pairs and a
depth of BK / PACK), the k that is i BK / PACK behind w's own place in its stretch of BK.
"""

import triton
import triton.language as tl

from .gemm import IEEE, grouped_tile


@triton.jit
def code_words(
    codes, cols, words, N: tl.constexpr, ROW: tl.constexpr, BN: tl.constexpr, EVEN: tl.constexpr
):
    """Words of a row of codes ROW words long, as int32, 0 from row N and from word ROW on."""
    at = codes + cols.to(tl.int64) * ROW + words
    if EVEN and N % BN == 0:
        value = tl.load(at)
    elif EVEN:
        value = tl.load(at, mask=cols < N, other=0)
    else:
        value = tl.load(at, mask=(cols < N) & (words < ROW), other=0)
    return value.to(tl.int32)


@triton.jit
def pointer_of_words(codes, BITS: tl.constexpr, PACK: tl.constexpr):
    """codes as a pointer of words of PACK codes."""
    if BITS * PACK == 32:
        codes = codes.to(tl.pointer_type(tl.int32))
    elif BITS * PACK == 16:
        codes = codes.to(tl.pointer_type(tl.int16))
    return codes


@triton.jit
def code(words, i: tl.constexpr, BITS: tl.constexpr):
    """Code i of words."""
    return (words >> (BITS * i)) & ((1 << BITS) - 1)


@triton.jit
def as_floats(q, like, BITS: tl.constexpr):
    """q + base_of(like, BITS) in the dtype of `like`: q is written into the mantissa of a power of
    two.
    """
    if like.dtype == tl.bfloat16 and BITS == 4:
        value = (q | 0x4300).to(tl.int16).to(tl.bfloat16, bitcast=True)
    elif like.dtype == tl.float16:
        value = (q | 0x6400).to(tl.int16).to(tl.float16, bitcast=True)
    else:
        value = q.to(tl.float32).to(like.dtype)
    return value


@triton.jit
def base_of(like, BITS: tl.constexpr):
    """What as_floats adds to a code."""
    base = 0.0
    if like.dtype == tl.bfloat16 and BITS == 4:
        base = 128.0
    elif like.dtype == tl.float16:
        base = 1024.0
    return base


@triton.jit
def part_of_group(
    env, codes, scale, zeros, rows, valid, cols, k, LOAD_X: tl.constexpr, N: tl.constexpr,
    K: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr, OFFSET: tl.constexpr, PACK: tl.constexpr,
    INTERLEAVED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """sum over the BK k's from k on, all of one group, of x (q - z) s; [BN, BM].

    `codes` points to words of column 0; cols[BN, 1], of which N are there, rows[1, BM], which are
    there where they are valid.
    """
    J: tl.constexpr = triton.cdiv(K, G)
    ROW: tl.constexpr = J * G // PACK
    DEEP: tl.constexpr = BK // PACK
    EVEN: tl.constexpr = (J * G) % BK == 0
    words = code_words(codes, cols, k // PACK + tl.arange(0, DEEP)[None, :], N, ROW, BN, EVEN)
    part = tl.zeros((BN, BM), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    base = 0.0
    for i in tl.static_range(PACK):
        if INTERLEAVED:
            ks = k + i * DEEP + tl.arange(0, DEEP)
        else:
            ks = k + i + PACK * tl.arange(0, DEEP)
        mask = valid if K % BK == 0 else valid & (ks < K)[:, None]
        x = LOAD_X(env, rows, ks[:, None], mask)
        base = base_of(x, BITS)
        part = tl.dot(as_floats(code(words, i, BITS), x, BITS), x, part, input_precision=PRECISION)
        total += tl.sum(x.to(tl.float32), axis=0)
    at = cols.to(tl.int64) * J + k // G
    s = tl.load(scale + at, mask=cols < N, other=0).to(tl.float32)
    z = tl.zeros((BN, 1), tl.float32) + OFFSET
    if zeros is not None:
        z = tl.load(zeros + at, mask=cols < N, other=0).to(tl.float32)
    return s * (part - (z + base) * total[None, :])


@triton.jit
def float_of_code(words, i: tl.constexpr, BITS: tl.constexpr):
    """Code i of words in float32, base_of_floats(BITS) too large: it is moved into the mantissa of
    a power of two.
    """
    PLACE: tl.constexpr = 16 if BITS == 4 else 14
    POWER: tl.constexpr = 0x43000000 if BITS == 4 else 0x44000000
    if BITS * i < PLACE:
        moved = words << (PLACE - BITS * i)
    else:
        moved = words >> (BITS * i - PLACE)
    return ((moved & (((1 << BITS) - 1) << PLACE)) | POWER).to(tl.float32, bitcast=True)


@triton.jit
def base_of_floats(BITS: tl.constexpr):
    """What float_of_code adds to a code: 2^7 to one of 4 bits, 2^9 to one of 8."""
    base: tl.constexpr = 128.0 if BITS == 4 else 512.0
    return base


@triton.jit
def two_codes(words, i: tl.constexpr, j: tl.constexpr, BITS: tl.constexpr):
    """Codes i and j of words[.., W] as floats, side by side: [.., 2 W]."""
    return tl.interleave(float_of_code(words, i, BITS), float_of_code(words, j, BITS))


@triton.jit
def four_codes(words, i: tl.constexpr, STEP: tl.constexpr, BITS: tl.constexpr):
    """Codes i, i + STEP, i + 2 STEP, i + 3 STEP of words[.., W] as floats: [.., 4 W]."""
    even = two_codes(words, i, i + 2 * STEP, BITS)
    return tl.interleave(even, two_codes(words, i + STEP, i + 3 * STEP, BITS))


@triton.jit
def codes_in_order(words, BITS: tl.constexpr, PER: tl.constexpr):
    """The PER codes of each of words[.., W] as floats, in their order: [.., PER W]. Halves are put
    between one another, which moves nothing from thread to thread.
    """
    if PER == 8:
        floats = tl.interleave(four_codes(words, 0, 2, BITS), four_codes(words, 1, 2, BITS))
    elif PER == 4:
        floats = four_codes(words, 0, 1, BITS)
    elif PER == 2:
        floats = two_codes(words, 0, 1, BITS)
    else:
        floats = float_of_code(words, 0, BITS)
    return floats


@triton.jit
def weights_of_codes(
    codes, scale, zeros, like, cols, k, N: tl.constexpr, K: tl.constexpr, BITS: tl.constexpr,
    G: tl.constexpr, OFFSET: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """(q - z) s for cols[BN, 1] and the BK k's from k on, in the dtype of `like`; [BN, BK].

    `codes` points to bytes; any groups.
    """
    J: tl.constexpr = triton.cdiv(K, G)
    # Words as wide as the rows of codes allow, at most 32 bits.
    WHOLE: tl.constexpr = (J * G) % (32 // BITS) == 0 and BK * BITS >= 128
    PER: tl.constexpr = 32 // BITS if WHOLE else 8 // BITS
    ROW: tl.constexpr = J * G // PER
    EVEN: tl.constexpr = (J * G) % BK == 0
    at = k // PER + tl.arange(0, BK // PER)[None, :]
    words = code_words(pointer_of_words(codes, BITS, PER), cols, at, N, ROW, BN, EVEN)
    floats = codes_in_order(words, BITS, PER)
    if G % BK == 0:
        place = cols.to(tl.int64) * J + k // G
        there = cols < N
    else:
        group = (k + tl.arange(0, BK))[None, :] // G
        place = cols.to(tl.int64) * J + group
        there = (cols < N) & (group < J)
    s = tl.load(scale + place, mask=there, other=0).to(tl.float32)
    if zeros is not None:
        z = tl.load(zeros + place, mask=there, other=0).to(tl.float32)
    else:
        z = tl.zeros((BN, 1), tl.float32) + OFFSET
    base = base_of_floats(BITS)
    if like.dtype == tl.float32:
        value = (floats - (z + base)) * s
    else:
        # One multiply-add a weight, as exact as 16 bits hold it.
        value = floats * s - (z + base) * s
    return value.to(like.dtype)


@triton.jit
def tile_of_weights(
    env, codes, scale, zeros, rows, valid, cols, low, high, LOAD_X: tl.constexpr,
    PARTS: tl.constexpr, WIDE: tl.constexpr, K: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr,
    OFFSET: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """tile_of_codes by weights that are made whole."""
    J: tl.constexpr = triton.cdiv(K, G)
    first = tl.zeros((BN, BM), tl.float32)
    second = tl.zeros((BN, BM), tl.float32)
    for k in range(low, tl.minimum(high, K), BK):
        ks = k + tl.arange(0, BK)
        mask = valid if K % BK == 0 else valid & (ks < K)[:, None]
        x = LOAD_X(env, rows, ks[:, None], mask)
        a = weights_of_codes(codes, scale, zeros, x, cols, k, WIDE, K, BITS, G, OFFSET, BN, BK)
        first = tl.dot(a, x, first, input_precision=PRECISION)
        if PARTS == 2:
            beside = zeros + WIDE * J if zeros is not None else None
            b = weights_of_codes(
                codes + WIDE * (J * G * BITS // 8), scale + WIDE * J, beside, x, cols, k, WIDE, K,
                BITS, G, OFFSET, BN, BK,
            )  # fmt: skip
            second = tl.dot(b, x, second, input_precision=PRECISION)
    return first, second


@triton.jit
def tile_of_codes(
    env, codes, scale, zeros, rows, valid, cols, low, high, LOAD_X: tl.constexpr,
    PARTS: tl.constexpr, WIDE: tl.constexpr, K: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr,
    OFFSET: tl.constexpr, PACK: tl.constexpr, INTERLEAVED: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr, ROUNDED: tl.constexpr = 0,
):  # fmt: skip
    """The sums of one part or two, [BN, BM] each, over the k from low to high; the second is zeros
    where there is one part.
    """
    tl.static_assert(PARTS == 1 or PARTS == 2, "one part or two")
    if ROUNDED:
        tl.static_assert(not INTERLEAVED, "weights are made of codes in their order")
        first, second = tile_of_weights(
            env, codes, scale, zeros, rows, valid, cols, low, high, LOAD_X, PARTS, WIDE, K, BITS,
            G, OFFSET, BM, BN, BK, PRECISION,
        )  # fmt: skip
    else:
        tl.static_assert(G % BK == 0 or G >= K, "BK divides the group, or there is one group")
        first, second = tile_by_groups(
            env, codes, scale, zeros, rows, valid, cols, low, high, LOAD_X, PARTS, WIDE, K, BITS,
            G, OFFSET, PACK, INTERLEAVED, BM, BN, BK, PRECISION,
        )  # fmt: skip
    return first, second


@triton.jit
def tile_by_groups(
    env, codes, scale, zeros, rows, valid, cols, low, high, LOAD_X: tl.constexpr,
    PARTS: tl.constexpr, WIDE: tl.constexpr, K: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr,
    OFFSET: tl.constexpr, PACK: tl.constexpr, INTERLEAVED: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """tile_of_codes by sums of one group after another."""
    J: tl.constexpr = triton.cdiv(K, G)
    ROW: tl.constexpr = J * G // PACK
    start = pointer_of_words(codes, BITS, PACK)
    first = tl.zeros((BN, BM), tl.float32)
    second = tl.zeros((BN, BM), tl.float32)
    for k in range(low, tl.minimum(high, K), BK):
        first += part_of_group(
            env, start, scale, zeros, rows, valid, cols, k, LOAD_X, WIDE, K, BITS, G, OFFSET, PACK,
            INTERLEAVED, BM, BN, BK, PRECISION,
        )  # fmt: skip
        if PARTS == 2:
            beside = zeros + WIDE * J if zeros is not None else None
            second += part_of_group(
                env, start + WIDE * ROW, scale + WIDE * J, beside, rows, valid, cols, k, LOAD_X,
                WIDE, K, BITS, G, OFFSET, PACK, INTERLEAVED, BM, BN, BK, PRECISION,
            )  # fmt: skip
    return first, second


@triton.jit
def gemm_codes(
    env, codes, scale, zeros, partial, M, N: tl.constexpr, K: tl.constexpr,
    LOAD_X: tl.constexpr, STORE: tl.constexpr, PARTS: tl.constexpr,
    BITS: tl.constexpr, G: tl.constexpr, OFFSET: tl.constexpr, PACK: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    INTERLEAVED: tl.constexpr = False, SPLIT: tl.constexpr = 1, GROUP: tl.constexpr = 8,
    PRECISION: tl.constexpr = IEEE, ROUNDED: tl.constexpr = 0,
):  # fmt: skip
    """sums[p][n, m] = sum over k of x[m, k] w[p N / PARTS + n, k], w the weights that codes stand
    for, on the side of the tile that matrix units make long.

    BK, a multiple of 16 PACK, divides G, or there is one group, or weights are ROUNDED. k is cut
    into SPLIT stretches as in gemm_few, for gather_splits. Grid (cdiv(N / PARTS, BN) cdiv(M, BM),
    SPLIT).
    """
    WIDE: tl.constexpr = N // PARTS
    DEEP: tl.constexpr = triton.cdiv(triton.cdiv(K, BK), SPLIT) * BK
    tile_m, tile_n = grouped_tile(tl.program_id(0), tl.cdiv(M, BM), triton.cdiv(WIDE, BN), GROUP)
    cols = (tile_n * BN + tl.arange(0, BN))[:, None]
    rows = (tile_m * BM + tl.arange(0, BM))[None, :]
    valid = rows < M
    split = tl.program_id(1)
    first, second = tile_of_codes(
        env, codes, scale, zeros, rows, valid, cols, split * DEEP, split * DEEP + DEEP, LOAD_X,
        PARTS, WIDE, K, BITS, G, OFFSET, PACK, INTERLEAVED, BM, BN, BK, PRECISION, ROUNDED,
    )  # fmt: skip
    inside = valid & (cols < WIDE)
    if SPLIT == 1:
        STORE(env, (first,) if PARTS == 1 else (first, second), rows, cols, inside)
    else:
        at = partial + (split * M + rows).to(tl.int64) * N + cols
        tl.store(at, first, mask=inside)
        if PARTS == 2:
            tl.store(at + WIDE, second, mask=inside)


@triton.jit
def gemm_integers(
    env, codes, scale, zeros, x_scale, M, N: tl.constexpr, K: tl.constexpr,
    LOAD_X: tl.constexpr, STORE: tl.constexpr, PARTS: tl.constexpr,
    BITS: tl.constexpr, G: tl.constexpr, OFFSET: tl.constexpr, PACK: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    INTERLEAVED: tl.constexpr = False, GROUP: tl.constexpr = 8,
):  # fmt: skip
    """sums[p][n, m] = sum over j of x_scale[m, j] s[n, j] (sum over i of x[m, j, i] (q[n, j, i] -
    z)), the inner sums in whole numbers; LOAD_X gives int8.

    x_scale f32[M, J]; BK, a multiple of 32 PACK, divides G, or there is one group. Grid as in
    gemm_codes without splits.
    """
    tl.static_assert(PARTS == 1 or PARTS == 2, "one part or two")
    tl.static_assert(G % BK == 0 or G >= K, "BK divides the group, or there is one group")
    WIDE: tl.constexpr = N // PARTS
    J: tl.constexpr = triton.cdiv(K, G)
    ROW: tl.constexpr = J * G // PACK
    tile_m, tile_n = grouped_tile(tl.program_id(0), tl.cdiv(M, BM), triton.cdiv(WIDE, BN), GROUP)
    cols = (tile_n * BN + tl.arange(0, BN))[:, None]
    rows = (tile_m * BM + tl.arange(0, BM))[None, :]
    valid = rows < M
    start = pointer_of_words(codes, BITS, PACK)

    first = tl.zeros((BN, BM), tl.float32)
    second = tl.zeros((BN, BM), tl.float32)
    for k in range(0, K, BK):
        first += integers_of_group(
            env, start, scale, zeros, x_scale, rows, valid, cols, k, LOAD_X, WIDE, K, BITS, G,
            OFFSET, PACK, INTERLEAVED, BM, BN, BK,
        )  # fmt: skip
        if PARTS == 2:
            beside = zeros + WIDE * J if zeros is not None else None
            second += integers_of_group(
                env, start + WIDE * ROW, scale + WIDE * J, beside, x_scale, rows, valid, cols, k,
                LOAD_X, WIDE, K, BITS, G, OFFSET, PACK, INTERLEAVED, BM, BN, BK,
            )  # fmt: skip

    sums = (first,) if PARTS == 1 else (first, second)
    STORE(env, sums, rows, cols, valid & (cols < WIDE))


@triton.jit
def integers_of_group(
    env, codes, scale, zeros, x_scale, rows, valid, cols, k, LOAD_X: tl.constexpr, N: tl.constexpr,
    K: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr, OFFSET: tl.constexpr, PACK: tl.constexpr,
    INTERLEAVED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """part_of_group in whole numbers: codes of 8 bits are taken less 128, to be int8."""
    LESS: tl.constexpr = 128 if BITS == 8 else 0
    J: tl.constexpr = triton.cdiv(K, G)
    ROW: tl.constexpr = J * G // PACK
    DEEP: tl.constexpr = BK // PACK
    EVEN: tl.constexpr = (J * G) % BK == 0
    words = code_words(codes, cols, k // PACK + tl.arange(0, DEEP)[None, :], N, ROW, BN, EVEN)
    part = tl.zeros((BN, BM), tl.int32)
    total = tl.zeros((BM,), tl.int32)
    for i in tl.static_range(PACK):
        if INTERLEAVED:
            ks = k + i * DEEP + tl.arange(0, DEEP)
        else:
            ks = k + i + PACK * tl.arange(0, DEEP)
        mask = valid if K % BK == 0 else valid & (ks < K)[:, None]
        x = LOAD_X(env, rows, ks[:, None], mask)
        part = tl.dot((code(words, i, BITS) - LESS).to(tl.int8), x, part, out_dtype=tl.int32)
        total += tl.sum(x.to(tl.int32), axis=0)
    at = cols.to(tl.int64) * J + k // G
    z = tl.zeros((BN, 1), tl.int32) + OFFSET
    if zeros is not None:
        z = tl.load(zeros + at, mask=cols < N, other=0).to(tl.int32)
    exact = (part - (z - LESS) * total[None, :]).to(tl.float32)
    s = tl.load(scale + at, mask=cols < N, other=0).to(tl.float32)
    xs = tl.load(x_scale + rows.to(tl.int64) * J + k // G, mask=valid, other=0)
    return s * xs * exact
