"""Attention written out: scores, a mask, a softmax, a sum of values."""

from __future__ import annotations

from ..ir.dims import Dim
from ..ir.node import Node
from ..ir.ops import tensor as t
from .rules.repeats import repeated
from .rules.values import spread, transposed

LOWEST = float("-inf")


def spelled_attention(node: Node) -> Node | None:
    """An attention as tensor ops, in float32; None where it has extras that stand for more than
    tensors: selected keys, a bias by distance.
    """
    extras = dict(zip(node["extras"], node.inputs[3:], strict=True))
    if extras.keys() - {"mask", "sinks"}:
        return None
    q, k, v = (_wide(x) for x in node.inputs[:3])
    heads = q.shape[1]
    k, v = repeated(k, heads), repeated(v, heads)
    scores = t.mul(t.matmul(q, transposed(k)), t.scalar(node["scale"], q.dtype))
    if node["softcap"]:
        cap = t.scalar(node["softcap"], q.dtype)
        scores = t.mul(t.tanh(t.div(scores, cap)), cap)
    seen = _seen(node)
    mask = extras.get("mask")
    if mask is not None and mask.dtype == "bool":
        seen = mask if seen is None else t.logical_and(seen, mask)
    elif mask is not None:
        scores = t.add(scores, _wide(mask))
    if seen is not None:
        scores = t.where(seen, scores, t.scalar(LOWEST, q.dtype))
    weights = _softmax(scores, extras.get("sinks"))
    y = t.matmul(weights, v)
    return y if y.dtype == node.dtype else t.cast(y, dtype=node.dtype)


def _wide(x: Node) -> Node:
    return x if x.dtype in ("f32", "f64") else t.cast(x, dtype="f32")


def _softmax(scores: Node, sinks: Node | None) -> Node:
    if sinks is None:
        return t.softmax(scores, axis=3)
    column = t.reshape(_wide(sinks), shape=(1, scores.shape[1], 1, 1))
    joined = t.concat(scores, spread(column, (*scores.shape[:3], 1)), axis=3)
    return t.slice_(t.softmax(joined, axis=3), axis=3, start=0, stop=scores.shape[3])


def _seen(node: Node) -> Node | None:
    """The pairs of query and key that the attributes let be seen."""
    queries, keys = node.inputs[0].shape[2], node.inputs[1].shape[2]
    i, j = _places(queries, (queries, 1)), _places(keys, (1, keys))
    parts: list[Node] = []
    if node["causal"]:
        parts.append(t.le(j, i))
    if node["window"]:
        parts.append(t.lt(t.abs_(t.sub(i, j)), t.scalar(node["window"], "i64")))
    if node["chunk"]:
        size = t.scalar(node["chunk"], "i64")
        parts.append(t.eq(t.floordiv(i, size), t.floordiv(j, size)))
    if not parts:
        return None
    seen = parts[0]
    for part in parts[1:]:
        seen = t.logical_and(seen, part)
    return seen


def _places(size: Dim, shape: tuple[Dim, Dim]) -> Node:
    return t.reshape(t.iota(size=size, dtype="i64"), shape=shape)
