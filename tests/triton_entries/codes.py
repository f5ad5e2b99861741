"""Entries of the templates of linears by codes, such as are generated."""

import triton
import triton.language as tl
from ferrule.codegen.triton.templates.codes import gemm_codes, gemm_integers
from ferrule.codegen.triton.templates.gemv_codes import gemv_codes
from triton_entries.gemm import load_plain, store_all


@triton.jit
def many(
    x, codes, scale, zeros, y, bias, residual, M, N: tl.constexpr, K: tl.constexpr,
    PARTS: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr, OFFSET: tl.constexpr,
    PACK: tl.constexpr, INTERLEAVED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    env = (x, y, bias, residual, N, K)
    gemm_codes(
        env,
        codes,
        scale,
        zeros,
        None,
        M,
        N * PARTS,
        K,
        LOAD_X=load_plain,
        STORE=store_all,
        PARTS=PARTS,
        BITS=BITS,
        G=G,
        OFFSET=OFFSET,
        PACK=PACK,
        BM=BM,
        BN=BN,
        BK=BK,
        INTERLEAVED=INTERLEAVED,
    )


@triton.jit
def one(
    x, codes, scale, zeros, y, bias, residual, M, N: tl.constexpr, K: tl.constexpr,
    PARTS: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr, OFFSET: tl.constexpr,
    PACK: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    env = (x, y, bias, residual, N, K)
    gemv_codes(
        env,
        codes,
        scale,
        zeros,
        M,
        N * PARTS,
        K,
        LOAD_X=load_plain,
        STORE=store_all,
        PARTS=PARTS,
        BITS=BITS,
        G=G,
        OFFSET=OFFSET,
        PACK=PACK,
        BN=BN,
        BK=BK,
    )


@triton.jit
def integers(
    x, x_scale, codes, scale, zeros, y, bias, residual, M, N: tl.constexpr, K: tl.constexpr,
    PARTS: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr, OFFSET: tl.constexpr,
    PACK: tl.constexpr, INTERLEAVED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    env = (x, y, bias, residual, N, K)
    gemm_integers(
        env,
        codes,
        scale,
        zeros,
        x_scale,
        M,
        N * PARTS,
        K,
        LOAD_X=load_plain,
        STORE=store_all,
        PARTS=PARTS,
        BITS=BITS,
        G=G,
        OFFSET=OFFSET,
        PACK=PACK,
        BM=BM,
        BN=BN,
        BK=BK,
        INTERLEAVED=INTERLEAVED,
    )
