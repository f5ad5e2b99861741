"""Raise counts: how many tokens so far have a property, a running sum of whole numbers, becomes
linear_scan.

Positions that leave out padding are such counts: a token's position is the number of tokens up to
it that are not the padding token. The scan has one number for a state, and is exact as long as the
sums are below 2^24, where float32 has every whole number; what is larger stays a running sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..ir.dims import Shape, equal, product
from ..ir.graph import Graph
from ..ir.node import Node
from ..ir.ops import recurrent
from ..ir.ops import tensor as t
from .analyze_tokens import LENGTH, analyze
from .rules.values import literal, reshaped, spread

EXACT = 1 << 24


@dataclass(frozen=True)
class RaiseCounts:
    """Running sums of small whole numbers over the tokens [B, S, ...] become linear_scan; sums over
    positions alone stay, for they become tables.
    """

    name: ClassVar[str] = "raise-counts"

    def run(self, graph: Graph) -> Graph:
        """The graph with its counts as scans."""
        longest = graph.bounds.get(LENGTH, (1, EXACT))[1]
        kinds = analyze(graph).kinds
        mapping: dict[Node, Node] = {}
        for node in graph.nodes():
            if node.op is not t.cumsum or kinds[node] != "token" or not _over_tokens(node):
                continue
            largest = bound(node.inputs[0])
            if largest is not None and largest * longest < EXACT:
                mapping[node] = _scan(node)
        return graph.replace(mapping) if mapping else graph


def _over_tokens(node: Node) -> bool:
    """Whether a running sum of whole numbers runs along the second of two symbolic dims, behind
    which are numbers.
    """
    if node.tensor.is_float or node.dtype == "bool" or node["axis"] != 1:
        return False
    _, length, *rest = node.shape
    return not isinstance(length, int) and all(isinstance(d, int) for d in rest)


def bound(node: Node) -> int | None:
    """What a whole-number value is at most away from zero, where its making shows that."""
    if node.dtype == "bool":
        return 1
    number = literal(node)
    if number is not None:
        return abs(int(number)) if number == int(number) else None
    if node.op in (t.reshape, t.broadcast, t.transpose, t.neg) or (
        node.op is t.cast and not node.inputs[0].tensor.is_float
    ):
        return bound(node.inputs[0])
    if node.op not in (t.mul, t.add, t.sub, t.where):
        return None
    parts = [bound(i) for i in node.inputs[node.op is t.where :]]
    if any(p is None for p in parts):
        return None
    a, b = (p for p in parts if p is not None)
    return a * b if node.op is t.mul else max(a, b) if node.op is t.where else a + b


def _scan(node: Node) -> Node:
    """S_t = S_{t-1} + x_t: nothing decays, and key and query are 1."""
    x = node.inputs[0]
    lead: Shape = (*x.shape[:2], 1, 1)
    rows = reshaped(t.cast(x, dtype="f32"), (*lead[:3], product(x.shape[2:])))
    one, none = (spread(reshaped(t.scalar(v, "f32"), (1, 1, 1, 1)), lead) for v in (1.0, 0.0))
    summed = reshaped(recurrent.linear_scan(one, one, rows, none), x.shape)
    assert equal(summed.shape[1], node.shape[1]), node
    return t.cast(summed, dtype=node.dtype)
