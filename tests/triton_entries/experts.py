"""Entries of the templates of linears by experts, such as are generated."""

import triton
import triton.language as tl
from ferrule.codegen.triton.templates.experts import (
    expert_gemm,
    expert_gemm_codes,
    expert_gemv,
    expert_gemv_codes,
    sort_rows,
)
from triton_entries.gemm import load_plain


@triton.jit
def store_gated(env, sums, rows, cols, mask):
    x, y, bias, residual, N, K = env
    value = sums[0]
    if len(sums) == 2:
        value = value / (1 + tl.exp(-value)) * sums[1]
    tl.store(y + rows * N + cols, value.to(y.dtype.element_ty), mask=mask)


@triton.jit
def sort(index, order, starts, M, E, BLOCK: tl.constexpr):
    sort_rows((index,), index, order, starts, M, E, BLOCK=BLOCK)


@triton.jit
def row(
    x,
    w,
    index,
    bias,
    y,
    M,
    N: tl.constexpr,
    K: tl.constexpr,
    PARTS: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    expert_gemv(
        (x, y, x, x, N, K),
        w,
        index,
        bias,
        M,
        N * PARTS,
        K,
        LOAD_X=load_plain,
        STORE=store_gated,
        PARTS=PARTS,
        BN=BN,
        BK=BK,
    )


@triton.jit
def tile(
    x, w, order, starts, bias, y, M, E, N: tl.constexpr, K: tl.constexpr, PARTS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    expert_gemm(
        (x, y, x, x, N, K),
        w,
        order,
        starts,
        bias,
        M,
        E,
        N * PARTS,
        K,
        LOAD_X=load_plain,
        STORE=store_gated,
        PARTS=PARTS,
        BM=BM,
        BN=BN,
        BK=BK,
    )


@triton.jit
def row_codes(
    x, codes, scale, zeros, index, bias, y, M, N: tl.constexpr, K: tl.constexpr, PARTS: tl.constexpr,
    BITS: tl.constexpr, G: tl.constexpr, OFFSET: tl.constexpr, PACK: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    expert_gemv_codes(
        (x, y, x, x, N, K),
        codes,
        scale,
        zeros,
        index,
        bias,
        M,
        N * PARTS,
        K,
        LOAD_X=load_plain,
        STORE=store_gated,
        PARTS=PARTS,
        BITS=BITS,
        G=G,
        OFFSET=OFFSET,
        PACK=PACK,
        BN=BN,
        BK=BK,
    )


@triton.jit
def tile_codes(
    x, codes, scale, zeros, order, starts, bias, y, M, E, N: tl.constexpr, K: tl.constexpr, PARTS: tl.constexpr,
    BITS: tl.constexpr, G: tl.constexpr, OFFSET: tl.constexpr, PACK: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    expert_gemm_codes(
        (x, y, x, x, N, K),
        codes,
        scale,
        zeros,
        order,
        starts,
        bias,
        M,
        E,
        N * PARTS,
        K,
        LOAD_X=load_plain,
        STORE=store_gated,
        PARTS=PARTS,
        BITS=BITS,
        G=G,
        OFFSET=OFFSET,
        PACK=PACK,
        BM=BM,
        BN=BN,
        BK=BK,
    )
