"""Whole numbers that float32 holds exactly: token ids and what is chosen or cut out of them."""

from __future__ import annotations

from ...ir.node import Node, walk
from ...ir.ops import recurrent
from ...ir.ops import tensor as t

MOST = 1 << 24  # no vocabulary has as many tokens
_CHOICES = frozenset({"where", "concat", "maximum", "minimum", "cast"})


def is_exact(node: Node) -> bool:
    """Whether all of a node's numbers are whole and below 2^24, token ids taken to be so."""
    known: dict[Node, bool] = {}
    for each in walk((node,)):
        known[each] = _is_exact(each, known)
    return known[node]


def _is_exact(node: Node, known: dict[Node, bool]) -> bool:
    kind = node.type
    dtype = getattr(kind, "dtype", "")
    if dtype == "bool":
        return True
    if node.op.name == "input":
        return dtype in ("i64", "i32")
    if node.op is t.constant:
        return float(node["value"]).is_integer() and abs(node["value"]) < MOST
    if node.op is t.mod:
        return known[node.inputs[1]]
    if node.op is recurrent.causal_conv:  # of one tap, which is 1
        x, taps, *_ = node.inputs
        return known[x] and not any(n.op.name == "parameter" for n in walk((taps,)))
    inputs = node.inputs[1:] if node.op is t.where else node.inputs
    passing = node.op.name in _CHOICES or node.op.has("movement")
    padded = node.op is t.pad and not float(node["value"]).is_integer()
    return passing and not padded and all(known[i] for i in inputs)
