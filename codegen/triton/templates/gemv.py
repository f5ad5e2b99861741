"""Linears for one row: rows of weights as they lie in memory, without matrix units.

With a FACTOR, x is a value that is known only once all of the row was seen: x[k] = u[k] f(sum over
j of v[j]), as behind an RMS norm. LOAD_X(env, row, ks, mask) then gives (u, v) in float32, and
FACTOR(env, row, total) gives f(total), by which sums are multiplied at last: the norm costs no pass
of its own. It is float32 to the end, where a norm before the linear would be rounded.
"""

import triton
import triton.language as tl

from .gemm import rows_of_weights


@triton.jit
def load_row(env, row, ks, mask, LOAD_X: tl.constexpr, FACTOR: tl.constexpr):
    """x at ks in float32, and what FACTOR wants the sum of; x twice where there is no FACTOR."""
    if FACTOR is None:
        x = LOAD_X(env, row, ks, mask).to(tl.float32)
        term = x
    else:
        x, term = LOAD_X(env, row, ks, mask)
        term = tl.where(mask, term, 0.0)
    return x, term


@triton.jit
def by_factor(env, row, one, other, total, FACTOR: tl.constexpr):
    """The sums of a row by f(total), total in parts that are added here."""
    if FACTOR is not None:
        factor = FACTOR(env, row, tl.sum(tl.sum(total, axis=1), axis=0))
        one *= factor
        other *= factor
    return one, other


@triton.jit
def summed(x, E: tl.constexpr):
    """Sums of E neighbours along the last axis of x[R, C], which lie in one thread."""
    return tl.sum(tl.reshape(x, (x.shape[0], x.shape[1] // E, E)), axis=2)


@triton.jit
def loaded_together(
    w, cols, ks, N: tl.constexpr, K: tl.constexpr, BN: tl.constexpr, EVEN_K: tl.constexpr,
    E: tl.constexpr,
):  # fmt: skip
    """w[cols, ks] as rows_of_weights gives it, E of them to a thread's load at most."""
    at = tl.max_contiguous(ks, (1, E))
    return rows_of_weights(w, cols[:, None], at, N, K, BN, EVEN_K)


@triton.jit
def row_of_sums(
    env, w, row, cols, LOAD_X: tl.constexpr, PARTS: tl.constexpr, WIDE: tl.constexpr,
    K: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, FACTOR: tl.constexpr = None,
):  # fmt: skip
    """The sums of one part or two over all k for columns cols[BN], of which WIDE are there; the
    first twice where there is one part.
    """
    EVEN_K: tl.constexpr = K % BK == 0
    # What a thread reads together: of x as many elements as of weights, or x would move.
    E: tl.constexpr = min(8, 128 // w.dtype.element_ty.primitive_bitwidth)
    ks = tl.arange(0, BK)[None, :]
    beside = w + WIDE * K
    x, term = load_row(env, row, ks, ks < K, LOAD_X, FACTOR)
    a = loaded_together(w, cols, ks, WIDE, K, BN, EVEN_K, E)
    b = a
    if PARTS == 2:
        b = loaded_together(beside, cols, ks, WIDE, K, BN, EVEN_K, E)
    first = tl.zeros((BN, BK // E), tl.float32)
    second = tl.zeros((BN, BK // E), tl.float32)
    total = tl.zeros((1, BK // E), tl.float32)
    for k in range(BK, K, BK):
        # What the next step reads is on its way while this one is summed.
        at = k + ks
        next_x, next_term = load_row(env, row, at, at < K, LOAD_X, FACTOR)
        next_a = loaded_together(w, cols, at, WIDE, K, BN, EVEN_K, E)
        next_b = next_a
        if PARTS == 2:
            next_b = loaded_together(beside, cols, at, WIDE, K, BN, EVEN_K, E)
            second += summed(b.to(tl.float32) * x, E)
        first += summed(a.to(tl.float32) * x, E)
        total += summed(term, E)
        x, term, a, b = next_x, next_term, next_a, next_b
    one = tl.sum(first + summed(a.to(tl.float32) * x, E), axis=1)
    other = one
    if PARTS == 2:
        other = tl.sum(second + summed(b.to(tl.float32) * x, E), axis=1)
    return by_factor(env, row, one, other, total + summed(term, E), FACTOR)


@triton.jit
def gemv(
    env, w, M, N: tl.constexpr, K: tl.constexpr,
    LOAD_X: tl.constexpr, STORE: tl.constexpr, PARTS: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, FACTOR: tl.constexpr = None,
):  # fmt: skip
    """sums[p][n] = sum over k of x[m, k] w[p N / PARTS + n, k] for one row m.

    Grid (cdiv(N / PARTS, BN), M).
    """
    tl.static_assert(PARTS == 1 or PARTS == 2, "one part or two")
    WIDE: tl.constexpr = N // PARTS
    cols = tl.program_id(0) * BN + tl.arange(0, BN)
    row = tl.program_id(1)
    first, second = row_of_sums(env, w, row, cols, LOAD_X, PARTS, WIDE, K, BN, BK, FACTOR)
    STORE(env, (first,) if PARTS == 1 else (first, second), row, cols, cols < WIDE)
