"""Contexts, values that a token makes of all tokens up to it, as kernel bodies: over batches, and
over paged caches.
"""

from __future__ import annotations

import torch
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.node import input_
from ferrule.ir.ops import contexts, serving
from ferrule.ir.ops import tensor as t
from ferrule.ir.types import CacheType
from kernels import T, given, ragged_batch

N, M, B, S, L = (dim(n) for n in "NMBSL")
PLACES = (
    given("slots", "i32", T),
    given("table", "i32", N, M),
    given("starts", "i32", N + 1),
    given("lengths", "i32", N),
)


def sigmoid_attention(heads: int, width: int, dtype: str = "f32") -> Graph:
    """sigmoid(q k^T + b distance) v, heads mixed by w before."""
    q = given("q", dtype, 1, heads, width)
    k, v = (given(n, dtype, L, heads, width) for n in "kv")
    w = given("w", dtype, heads, heads)
    query, keys = t.transpose(q, permutation=(1, 0, 2)), t.transpose(k, permutation=(1, 2, 0))
    scores = t.reshape(t.matmul(query, keys), shape=(heads, L))
    here = t.dim_value(dim=L - 1, dtype="i64")
    away = t.cast(t.sub(here, t.iota(size=L, dtype="i64")), dtype=dtype)
    mixed = t.sub(t.matmul(w, scores), t.mul(away, t.scalar(0.25, dtype)))
    weights = t.reshape(t.sigmoid(mixed), shape=(heads, 1, L))
    y = t.matmul(weights, t.transpose(v, permutation=(1, 0, 2)))
    return Graph("row", (q, k, v, w), (t.reshape(y, shape=(1, heads, width)),), bounds=BOUNDS)


def averages(width: int) -> Graph:
    """The average of the tokens so far, of which none is read alone, and a softmax of them."""
    z = given("z", "f32", L, width)
    total = t.reduce_sum(z, axes=(0,), keepdims=True)
    mean = t.div(total, t.dim_value(dim=L, dtype="f32"))
    y = t.reduce_sum(t.mul(t.softmax(z, axis=0), z), axes=(0,), keepdims=True)
    return Graph("row", (z,), (t.concat(mean, y, axis=1),), bounds=BOUNDS)


BOUNDS = {"L": (1, 4096)}


def paged(body: Graph, own: int, seen: int, cached: str, block: int) -> Graph:
    """A body whose values of the token itself are sums, what is seen in caches."""
    inner = body.inputs
    xs = [given(f"x{i}", n.dtype, T, *n.shape[1:]) for i, n in enumerate(inner[:own])]
    caches = [
        input_(name=f"c{i}", type=CacheType(cached, block, tuple(int(d) for d in n.shape[1:])))
        for i, n in enumerate(inner[own : own + seen])
    ]
    rest = [given(n["name"], n.dtype, *n.shape) for n in inner[own + seen :]]
    made = contexts.paged_context(
        *(t.add(x, x) for x in xs), *caches, *PLACES, *rest, body=body, own=own, seen=seen
    )
    return Graph("body", (*xs, *caches, *PLACES, *rest), (made,))


def appending(body: Graph) -> Graph:
    """A body without constants whose one seen value is appended first."""
    z = given("z", "f32", T, *body.inputs[0].shape[1:])
    cache = input_(name="c0", type=CacheType("f32", 4, tuple(int(d) for d in z.shape[1:])))
    held = serving.cache_append(cache, z, PLACES[0])
    made = contexts.paged_context(held, *PLACES, body=body, own=0, seen=1)
    return Graph("body", (z, cache, *PLACES), (made, held))


def dense(body: Graph, own: int, seen: int) -> Graph:
    inner = body.inputs
    xs = [given(f"x{i}", n.dtype, B, S, *n.shape[1:]) for i, n in enumerate(inner[: own + seen])]
    rest = [given(n["name"], n.dtype, *n.shape) for n in inner[own + seen :]]
    made = contexts.token_context(*xs, *rest, body=body, own=own, seen=seen)
    return Graph("body", (*xs, *rest), (made,))


BODIES = {
    "sigmoid": paged(sigmoid_attention(3, 5), 1, 2, "f32", 4),
    "sigmoid bf16": paged(sigmoid_attention(2, 16, "bf16"), 1, 2, "bf16", 16),
    "averages": paged(averages(7), 0, 1, "f16", 4),
    "appended": appending(averages(5)),
    "dense sigmoid": dense(sigmoid_attention(4, 19), 1, 2),
    "dense averages": dense(averages(6), 0, 1),
}


BATCHES = (([3, 1, 1], [0, 4, 15]), ([1], [0]), ([40], [3]), ([1], [33]))
"""New tokens of sequences, and those before them."""


def values_of(
    name: str, batch: tuple[list[int], list[int]]
) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """What a body over paged caches is given for a batch, and its dims."""
    block = next(i.type.block for i in BODIES[name].inputs if isinstance(i.type, CacheType))
    values, dims = ragged_batch(*batch, block=block)
    table, starts = values["table"], values["starts"].int()
    slots = [
        int(table[n, p // block]) * block + p % block
        for n, (new, old) in enumerate(zip(*batch, strict=True))
        for p in range(old, old + new)
    ]
    values["slots"] = starts.new_tensor(slots)
    return values, dims
