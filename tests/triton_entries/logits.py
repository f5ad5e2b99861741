"""Entries of the templates of logits, such as are generated."""

import triton
import triton.language as tl
from ferrule.codegen.triton.templates.logits import (
    best_of_tiles,
    gemm_best,
    gemv_best,
    top_of_chunk,
    top_of_chunks,
)


@triton.jit
def load_x(env, rows, ks, mask):
    x, K = env
    return tl.load(x + rows * K + ks, mask=mask, other=0)


@triton.jit
def rounded(env, sums, rows, cols, mask):
    """Logits as a model rounds them, so that many are equal."""
    return (sums[0] * 0.25).to(tl.float16).to(tl.float32)


@triton.jit
def many(
    x,
    w,
    best,
    column,
    M,
    N: tl.constexpr,
    K: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    gemm_best((x, K), w, best, column, M, N, K, LOAD_X=load_x, VALUE=rounded, BM=BM, BN=BN, BK=BK)


@triton.jit
def one(
    x, w, best, column, M, N: tl.constexpr, K: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):
    gemv_best((x, K), w, best, column, M, N, K, LOAD_X=load_x, VALUE=rounded, BN=BN, BK=BK)


@triton.jit
def folded(best, column, result, M, TILES: tl.constexpr, BLOCK: tl.constexpr):
    best_of_tiles(best, column, result, M, TILES, BLOCK=BLOCK)


@triton.jit
def load_value(env, row, cols, mask):
    x, N = env
    return tl.load(x + row * N + cols, mask=mask, other=0)


@triton.jit
def top(x, values, columns, M, N, TOP: tl.constexpr, BLOCK: tl.constexpr):
    top_of_chunk((x, N), values, columns, M, N, VALUE=load_value, TOP=TOP, BLOCK=BLOCK)


@triton.jit
def top_folded(
    values,
    columns,
    top_values,
    top_columns,
    CHUNKS: tl.constexpr,
    TOP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    top_of_chunks(values, columns, top_values, top_columns, CHUNKS=CHUNKS, TOP=TOP, BLOCK=BLOCK)
