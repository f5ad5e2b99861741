"""Entries of the gemm templates, such as are generated: what they read, what they store."""

import triton
import triton.language as tl
from ferrule.codegen.triton.templates.gemm import gather_splits, gemm, gemm_few
from ferrule.codegen.triton.templates.gemm_persistent import gemm_persistent
from ferrule.codegen.triton.templates.gemv import gemv


@triton.jit
def load_plain(env, rows, ks, mask):
    x, y, bias, residual, N, K = env
    return tl.load(x + rows * K + ks, mask=mask, other=0.0)


@triton.jit
def load_squared(env, rows, ks, mask):
    """A prologue: the square of x, in x's dtype."""
    x = load_plain(env, rows, ks, mask).to(tl.float32)
    return (x * x).to(env[0].dtype.element_ty)


@triton.jit
def store_plain(env, sums, rows, cols, mask):
    x, y, bias, residual, N, K = env
    tl.store(y + rows * N + cols, sums[0].to(y.dtype.element_ty), mask=mask)


@triton.jit
def store_all(env, sums, rows, cols, mask):
    """Bias, the gate's silu where there is one, residual."""
    x, y, bias, residual, N, K = env
    value = sums[0] + tl.load(bias + cols, mask=cols < N, other=0).to(tl.float32)
    if len(sums) == 2:
        up = sums[1] + tl.load(bias + N + cols, mask=cols < N, other=0).to(tl.float32)
        value = value / (1 + tl.exp(-value)) * up
    value += tl.load(residual + rows * N + cols, mask=mask, other=0).to(tl.float32)
    tl.store(y + rows * N + cols, value.to(y.dtype.element_ty), mask=mask)


@triton.jit
def store_scaled(env, sums, rows, cols, mask):
    """Scales of the columns, as weights of float8 have them; they lie where a bias would."""
    x, y, bias, residual, N, K = env
    scale = tl.load(bias + cols, mask=cols < N, other=0).to(tl.float32)
    tl.store(y + rows * N + cols, (sums[0] * scale).to(y.dtype.element_ty), mask=mask)


@triton.jit
def many(
    x, w, y, bias, residual, M, N: tl.constexpr, K: tl.constexpr, LOAD_X: tl.constexpr,
    STORE: tl.constexpr, PARTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, PRECISION: tl.constexpr = "ieee",
):  # fmt: skip
    env = (x, y, bias, residual, N, K)
    gemm(
        env,
        w,
        M,
        N * PARTS,
        K,
        LOAD_X=LOAD_X,
        STORE=STORE,
        PARTS=PARTS,
        BM=BM,
        BN=BN,
        BK=BK,
        GROUP=2,
        PRECISION=PRECISION,
    )


@triton.jit
def few(
    x, w, y, bias, residual, M, N: tl.constexpr, K: tl.constexpr, LOAD_X: tl.constexpr,
    STORE: tl.constexpr, PARTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, PRECISION: tl.constexpr = "ieee",
):  # fmt: skip
    env = (x, y, bias, residual, N, K)
    gemm_few(
        env,
        w,
        None,
        M,
        N * PARTS,
        K,
        LOAD_X=LOAD_X,
        STORE=STORE,
        PARTS=PARTS,
        BM=BM,
        BN=BN,
        BK=BK,
        PRECISION=PRECISION,
    )


@triton.jit
def few_split(
    x, w, partial, M, N: tl.constexpr, K: tl.constexpr, LOAD_X: tl.constexpr,
    PARTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    env = (x, x, x, x, N, K)
    gemm_few(
        env,
        w,
        partial,
        M,
        N * PARTS,
        K,
        LOAD_X=LOAD_X,
        STORE=store_plain,
        PARTS=PARTS,
        BM=BM,
        BN=BN,
        BK=BK,
        SPLIT=SPLIT,
    )


@triton.jit
def gathered(
    partial, y, bias, residual, M, N: tl.constexpr, K: tl.constexpr, STORE: tl.constexpr,
    PARTS: tl.constexpr, SPLIT: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    env = (y, y, bias, residual, N, K)
    gather_splits(env, partial, M, N * PARTS, STORE=STORE, PARTS=PARTS, SPLIT=SPLIT, BN=BN)


@triton.jit
def one(
    x, w, y, bias, residual, M, N: tl.constexpr, K: tl.constexpr, LOAD_X: tl.constexpr,
    STORE: tl.constexpr, PARTS: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    env = (x, y, bias, residual, N, K)
    gemv(env, w, M, N * PARTS, K, LOAD_X=LOAD_X, STORE=STORE, PARTS=PARTS, BN=BN, BK=BK)


@triton.jit
def persistent(
    x, w, y, bias, residual, M, N: tl.constexpr, K: tl.constexpr, LOAD_X: tl.constexpr,
    STORE: tl.constexpr, PARTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    env = (x, y, bias, residual, N, K)
    gemm_persistent(
        env,
        w,
        M,
        N * PARTS,
        K,
        LOAD_X=LOAD_X,
        STORE=STORE,
        PARTS=PARTS,
        BM=BM,
        BN=BN,
        BK=BK,
        TMA=TMA,
        GROUP=2,
    )
