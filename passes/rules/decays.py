"""Decays of scans, which are given by their logarithms."""

from __future__ import annotations

from ...ir.node import Node
from ...ir.ops import recurrent
from ...ir.ops import tensor as t
from ...ir.rewrite import Rules, hole

DECAYS = Rules("decays")
_MOVES = (t.reshape, t.broadcast, t.transpose, t.slice_, t.cast)


@DECAYS.on(hole("scan", lambda node: node.op is recurrent.linear_scan))
def decay_by_exp(root: Node) -> Node | None:
    """exp(log(exp(x))) = exp(x): the logarithm of such a decay is x, whatever is moved between."""
    q, k, v, decay, *beta = root.inputs
    given = _unlogged(decay)
    return None if given is None else root.with_inputs((q, k, v, given, *beta))


def _unlogged(node: Node) -> Node | None:
    """x moved as log(exp(x)) is."""
    if node.op in _MOVES:
        return _again(node, _unlogged(node.inputs[0]))
    return _exponent(node.inputs[0]) if node.op is t.log else None


def _exponent(node: Node) -> Node | None:
    """x moved as exp(x) is."""
    if node.op in _MOVES:
        return _again(node, _exponent(node.inputs[0]))
    return node.inputs[0] if node.op is t.exp else None


def _again(node: Node, inner: Node | None) -> Node | None:
    return None if inner is None else node.with_inputs((inner,))
