"""Linears by codes for one row, in registers: y[n] = sum_k x[k] (q[n, k] - z[n, j]) s[n, j].

A thread reads a run of up to four words of each of its columns at a time, all of one group, and x
for all columns once. A code stays where it lies in its word or moves with a neighbour, and becomes
a float by its bits: too large by a power of two, which is made good for all columns together,

sum_k x (q - z) = sum_k x (q + base_k) - sum_k x (base_k + z).

How codes lie is as in codes.py; FACTOR as in gemv.py.
"""

import triton
import triton.language as tl

from .codes import pointer_of_words
from .gemv import by_factor, load_row


@triton.jit
def half(x, side: tl.constexpr):
    """Every other element along the last axis of x[A, B, C]."""
    pairs = tl.reshape(x, (x.shape[0], x.shape[1], x.shape[2] // 2, 2))
    even, odd = tl.split(pairs)
    return odd if side else even


@triton.jit
def member(x, i: tl.constexpr, COUNT: tl.constexpr):
    """x[A, B, i] of x[A, B, COUNT], COUNT a power of two up to 8."""
    if COUNT > 1:
        x = half(x, i & 1)
    if COUNT > 2:
        x = half(x, (i >> 1) & 1)
    if COUNT > 4:
        x = half(x, (i >> 2) & 1)
    return tl.reshape(x, (x.shape[0], x.shape[1]))


@triton.jit
def place_of(i: tl.constexpr, BITS: tl.constexpr):
    """The bit of a float32 that code i of a word is moved to, as high as its mantissa goes: two
    neighbours of 4 bits stay beside one another, so that one shift moves both.
    """
    place: tl.constexpr = 19 if BITS == 4 and i % 2 else 15
    return place


@triton.jit
def base_of(i: tl.constexpr, BITS: tl.constexpr):
    """By how much placed_code makes code i too large."""
    base: tl.constexpr = 1 << (23 - place_of(i, BITS))
    return base


@triton.jit
def placed_code(words, none, i: tl.constexpr, BITS: tl.constexpr):
    """Code i of words as a float32, base_of(i, BITS) too large. `none` is 0, which the compiler
    must not know: what is put in then lies in a register, and one instruction masks and puts it in.
    """
    PLACE: tl.constexpr = place_of(i, BITS)
    MASK: tl.constexpr = ((1 << BITS) - 1) << PLACE
    POWER: tl.constexpr = (150 - PLACE) << 23
    if BITS * i < PLACE:
        moved = words << (PLACE - BITS * i)
    else:
        moved = words >> (BITS * i - PLACE)
    return ((moved & MASK) | (POWER + none)).to(tl.float32, bitcast=True)


@triton.jit
def with_word(sums, words, x, none, BITS: tl.constexpr, PACK: tl.constexpr):
    """sums + sum over i of x[.., i] (code i of words[.., R] + its base)."""
    for i in tl.static_range(PACK):
        sums += placed_code(words, none, i, BITS) * member(x, i, PACK)
    return sums


@triton.jit
def sum_of_bases(x, OFFSET: tl.constexpr, BITS: tl.constexpr, PACK: tl.constexpr):
    """sum over i of x[.., i] (the base of code i + OFFSET)."""
    part = tl.zeros((x.shape[0], x.shape[1]), tl.float32)
    for i in tl.static_range(PACK):
        part += (base_of(i, BITS) + OFFSET) * member(x, i, PACK)
    return part


@triton.jit
def words_of_runs(
    words, scale, zeros, cols, run, N: tl.constexpr, J: tl.constexpr, ROW: tl.constexpr,
    PER: tl.constexpr, LONG: tl.constexpr, BN: tl.constexpr, RUNS: tl.constexpr,
):  # fmt: skip
    """LONG words of every run of columns cols[BN], i32[BN, R, LONG], scales and zeros of each run,
    f32[BN, R], or [BN, 1] where there is one group; 0 where there are none. A group has PER words.
    """
    EVEN: tl.constexpr = ROW % (RUNS * LONG) == 0 and N % BN == 0
    wide = cols.to(tl.int64)
    lanes = tl.arange(0, LONG)[None, None, :]
    at = words + wide[:, None, None] * ROW + (run * LONG)[None, :, None] + lanes
    there = (cols < N)[:, None] & ((run * LONG) < ROW)[None, :]
    held = tl.load(at) if EVEN else tl.load(at, mask=there[:, :, None], other=0)
    if J == 1:
        there, place = (cols < N)[:, None], wide[:, None]
    else:
        place = wide[:, None] * J + (run * LONG // PER)[None, :]
    s = value_of_run(scale, place, there, EVEN)
    z = s
    if zeros is not None:
        z = value_of_run(zeros, place, there, EVEN)
    return held.to(tl.int32), s, z


@triton.jit
def value_of_run(values, place, there, EVEN: tl.constexpr):
    """values[place] in float32, 0 where none is there; EVEN: all are."""
    found = tl.load(values + place) if EVEN else tl.load(values + place, mask=there, other=0)
    return found.to(tl.float32)


@triton.jit
def sums_of_runs(
    env, row, run, none, one, other, total, held, s, z, beside, s2, z2, LOAD_X: tl.constexpr,
    FACTOR: tl.constexpr, PARTS: tl.constexpr, K: tl.constexpr, BITS: tl.constexpr,
    PACK: tl.constexpr, LONG: tl.constexpr, OFFSET: tl.constexpr, ZEROS: tl.constexpr,
):  # fmt: skip
    """Sums and total with those of the runs run[R] added: words, scales and zeros of one part and
    of the other as words_of_runs gives them.
    """
    first, second = tl.zeros_like(one), tl.zeros_like(other)
    less = tl.zeros((1, run.shape[0]), tl.float32)
    plain = tl.zeros((1, run.shape[0]), tl.float32)
    for j in tl.static_range(LONG):
        ks = ((run * LONG + j) * PACK)[None, :, None] + tl.arange(0, PACK)[None, None, :]
        x, term = load_row(env, row, ks, ks < K, LOAD_X, FACTOR)
        first = with_word(first, member(held, j, LONG), x, none, BITS, PACK)
        if PARTS == 2:
            second = with_word(second, member(beside, j, LONG), x, none, BITS, PACK)
        less += sum_of_bases(x, 0 if ZEROS else OFFSET, BITS, PACK)
        plain += tl.sum(x, axis=2)
        total += tl.sum(term, axis=2)
    if ZEROS:
        one += s * (first - less - z * plain)
        other += s2 * (second - less - z2 * plain)
    else:
        one += s * (first - less)
        other += s2 * (second - less)
    return one, other, total


@triton.jit
def row_of_codes(
    env, codes, scale, zeros, M, row, cols, LOAD_X: tl.constexpr, PARTS: tl.constexpr,
    N: tl.constexpr, K: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr, OFFSET: tl.constexpr,
    PACK: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, FACTOR: tl.constexpr = None,
):  # fmt: skip
    """The sums of one part or two over all k for columns cols[BN], of which N are there; the first
    twice where there is one part. PACK divides G; M is a number of rows.
    """
    tl.static_assert(G % PACK == 0, "a word lies in one group")
    J: tl.constexpr = triton.cdiv(K, G)
    ROW: tl.constexpr = J * G // PACK
    PER: tl.constexpr = G // PACK
    LONG: tl.constexpr = 4 if PER % 4 == 0 and BK >= 4 * PACK else 1
    RUNS: tl.constexpr = BK // (PACK * LONG)
    ZEROS: tl.constexpr = zeros is not None
    none = M >> 31
    words = pointer_of_words(codes, BITS, PACK)
    words2 = words + N * ROW
    scale2 = scale + N * J
    zeros2 = zeros + N * J if ZEROS else None
    run = tl.arange(0, RUNS)
    held, s, z = words_of_runs(words, scale, zeros, cols, run, N, J, ROW, PER, LONG, BN, RUNS)
    beside, s2, z2 = held, s, z
    if PARTS == 2:
        beside, s2, z2 = words_of_runs(
            words2, scale2, zeros2, cols, run, N, J, ROW, PER, LONG, BN, RUNS
        )
    one = tl.zeros((BN, RUNS), tl.float32)
    other = tl.zeros((BN, RUNS), tl.float32)
    total = tl.zeros((1, RUNS), tl.float32)
    for k in range(RUNS, triton.cdiv(K, PACK * LONG) + none, RUNS):  # unrolled it would spill
        # What the next step reads is on its way while this one is summed.
        ahead, s_ahead, z_ahead = words_of_runs(
            words, scale, zeros, cols, k + tl.arange(0, RUNS), N, J, ROW, PER, LONG, BN, RUNS
        )
        ahead2, s2_ahead, z2_ahead = ahead, s_ahead, z_ahead
        if PARTS == 2:
            ahead2, s2_ahead, z2_ahead = words_of_runs(
                words2, scale2, zeros2, cols, k + tl.arange(0, RUNS), N, J, ROW, PER, LONG, BN, RUNS
            )
        one, other, total = sums_of_runs(
            env, row, run, none, one, other, total, held, s, z, beside, s2, z2, LOAD_X, FACTOR,
            PARTS, K, BITS, PACK, LONG, OFFSET, ZEROS,
        )  # fmt: skip
        run = k + tl.arange(0, RUNS)
        held, s, z, beside, s2, z2 = ahead, s_ahead, z_ahead, ahead2, s2_ahead, z2_ahead
    one, other, total = sums_of_runs(
        env, row, run, none, one, other, total, held, s, z, beside, s2, z2, LOAD_X, FACTOR, PARTS,
        K, BITS, PACK, LONG, OFFSET, ZEROS,
    )  # fmt: skip
    return by_factor(env, row, tl.sum(one, axis=1), tl.sum(other, axis=1), total, FACTOR)


@triton.jit
def gemv_codes(
    env, codes, scale, zeros, M, N: tl.constexpr, K: tl.constexpr,
    LOAD_X: tl.constexpr, STORE: tl.constexpr, PARTS: tl.constexpr,
    BITS: tl.constexpr, G: tl.constexpr, OFFSET: tl.constexpr, PACK: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, FACTOR: tl.constexpr = None,
):  # fmt: skip
    """sums[p][n] of gemm_codes for one row m; PACK divides G.

    Grid (cdiv(N / PARTS, BN), M).
    """
    tl.static_assert(PARTS == 1 or PARTS == 2, "one part or two")
    WIDE: tl.constexpr = N // PARTS
    cols = tl.program_id(0) * BN + tl.arange(0, BN)
    row = tl.program_id(1)
    first, second = row_of_codes(
        env, codes, scale, zeros, M, row, cols, LOAD_X, PARTS, WIDE, K, BITS, G, OFFSET, PACK, BN,
        BK, FACTOR,
    )  # fmt: skip
    STORE(env, (first,) if PARTS == 1 else (first, second), row, cols, cols < WIDE)
