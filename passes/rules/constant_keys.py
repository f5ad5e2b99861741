"""Attention that each token does alone: to a memory of the model, or among its own numbers."""

from __future__ import annotations

from collections.abc import Iterable

from ...ir.dims import Dim, names_in
from ...ir.graph import Graph
from ...ir.node import Node, walk
from ...ir.ops import model
from ...ir.ops import tensor as t
from ...ir.rewrite import Rules, hole
from ..spell_attention import spelled_attention
from ..token_values import S
from .repeats import repeated
from .values import transposed

CONSTANT_KEYS = Rules("constant keys")


@CONSTANT_KEYS.on(hole("root", lambda node: node.op is model.attention))
def attention_to_constants(root: Node) -> Node | None:
    """attention(q, k, v) = softmax(scale q kᵀ + mask) v, where k and v are numbers of the model."""
    q, k, v, *more = root.inputs
    if root["softcap"] or root["causal"] or root["extras"] not in ((), ("mask",)):
        return None
    batch = names_in(q.shape[0])
    keys, values = _alone(k, batch), _alone(v, batch)
    if keys is None or values is None:
        return None
    heads = q.shape[1]
    scores = _cast(t.matmul(q, transposed(repeated(keys, heads))), "f32")
    scores = t.mul(scores, t.scalar(root["scale"], "f32"))
    if more:
        scores = _masked(scores, more[0])
    weights = t.softmax(scores, axis=len(scores.shape) - 1)
    return t.matmul(_cast(weights, v.dtype), repeated(values, heads))


@CONSTANT_KEYS.on(hole("root", lambda node: node.op is model.attention))
def attention_inside_tokens(root: Node) -> Node | None:
    """softmax(scale q kᵀ + mask) v, where queries and keys are both of the token itself."""
    q, k, *_ = root.inputs
    alone = is_inside_tokens(q.shape[:2]) and not names_in(q.shape[2]) | names_in(k.shape[2])
    return spelled_attention(root) if alone else None


def is_inside_tokens(frame: Iterable[Dim]) -> bool:
    """Whether the length is in the frame (batch, heads) that attention is repeated over: what it
    compares are numbers of a token, such as its values at several layers.
    """
    return any(str(S) in names_in(d) for d in frame)


def _masked(scores: Node, mask: Node) -> Node:
    if mask.dtype == "bool":
        return t.where(mask, scores, t.scalar(-float("inf"), "f32"))
    return t.add(scores, _cast(mask, "f32"))


def _alone(node: Node, batch: frozenset[str]) -> Node | None:
    """What is the same for each row of the batch, for one row; None where tokens are in it, or
    numbers of rows or of places.
    """
    counted = ("input", "iota", "dim_value")
    if any(n.op.name in counted for n in walk((node,))):
        return None
    made = Graph("keys", (), (node,)).substitute(dict.fromkeys(batch, 1)).outputs[0]
    return None if any(names_in(d) for d in made.shape) else made


def _cast(node: Node, dtype: str) -> Node:
    return node if node.dtype == dtype else t.cast(node, dtype=dtype)
