"""Entries of the attention templates, such as are generated."""

import triton
import triton.language as tl
from ferrule.codegen.triton.templates.attention import attend_splits, attend_tokens, join_splits


@triton.jit
def load_q(env, rows, heads, ds, mask):
    q, y, H, D, E = env
    return tl.load(q + (rows * H + heads).to(tl.int64) * D + ds, mask=mask, other=0)


@triton.jit
def store_y(env, sums, rows, heads, es, mask):
    q, y, H, D, E = env
    at = y + (rows * H + heads) * E + es
    tl.store(at, sums[0].to(y.dtype.element_ty), mask=mask)


@triton.jit
def tokens(
    q, k, v, table, starts, lengths, sinks, slopes, bias, k_scale, v_scale, y, N, M,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr,
    WIDTH: tl.constexpr, FIRST: tl.constexpr, SAME: tl.constexpr, SCALE: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr, SOFTCAP: tl.constexpr,
    REACH: tl.constexpr, DA: tl.constexpr, DB: tl.constexpr, EA: tl.constexpr, EB: tl.constexpr,
    HEADS: tl.constexpr, TOKENS: tl.constexpr, BK: tl.constexpr, SINGLES: tl.constexpr,
):  # fmt: skip
    attend_tokens(
        (q, y, H, D, E), k, v, table, starts, lengths, sinks, slopes, bias, k_scale, v_scale, N, M,
        LOAD_Q=load_q, STORE=store_y, H=H, G=G, D=D, E=E, BLOCK=BLOCK, WIDTH=WIDTH, FIRST=FIRST,
        SAME=SAME, SCALE=SCALE, CAUSAL=CAUSAL, WINDOW=WINDOW, CHUNK=CHUNK, SOFTCAP=SOFTCAP,
        REACH=REACH, DA=DA, DB=DB, EA=EA, EB=EB, HEADS=HEADS, TOKENS=TOKENS, BK=BK, SINGLES=SINGLES,
    )  # fmt: skip


@triton.jit
def splits(
    q, k, v, table, starts, lengths, slopes, bias, k_scale, v_scale, partial, stats, M,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr,
    WIDTH: tl.constexpr, FIRST: tl.constexpr, SAME: tl.constexpr, SCALE: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr, SOFTCAP: tl.constexpr,
    REACH: tl.constexpr, DA: tl.constexpr, DB: tl.constexpr, EA: tl.constexpr, EB: tl.constexpr,
    HEADS: tl.constexpr, BK: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    attend_splits(
        (q, q, H, D, E), k, v, table, starts, lengths, slopes, bias, k_scale, v_scale, partial, stats, M,
        LOAD_Q=load_q, H=H, G=G, D=D, E=E, BLOCK=BLOCK, WIDTH=WIDTH, FIRST=FIRST,
        SAME=SAME, SCALE=SCALE, CAUSAL=CAUSAL, WINDOW=WINDOW, CHUNK=CHUNK, SOFTCAP=SOFTCAP,
        REACH=REACH, DA=DA, DB=DB, EA=EA, EB=EB, HEADS=HEADS, BK=BK, SPLITS=SPLITS,
    )  # fmt: skip


@triton.jit
def joined(
    starts, sinks, partial, stats, y,
    H: tl.constexpr, E: tl.constexpr, SPLITS: tl.constexpr, WAYS: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    join_splits(
        (y, y, H, E, E),
        starts,
        sinks,
        partial,
        stats,
        STORE=store_y,
        H=H,
        E=E,
        SPLITS=SPLITS,
        WAYS=WAYS,
        BE=BE,
    )
