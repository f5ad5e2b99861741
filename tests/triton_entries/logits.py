"""Entries of the templates of logits, such as are generated."""

import triton
import triton.language as tl
from ferrule.codegen.triton.templates.logits import top_of_chunk, top_of_chunks


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
    top_of_chunks(
        (values,), values, columns, top_values, top_columns, CHUNKS=CHUNKS, TOP=TOP, BLOCK=BLOCK
    )
