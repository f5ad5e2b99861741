"""Order columns: a linear whose columns are taken apart group by group gives each part in one run.

Some models keep what belongs to a head together: columns [G, C], of which queries, keys and values
are slices of C, flattened again to [G c] each. Read like that, neighbours in a part are not
neighbours in memory wherever a group ends, and a convolution or a norm over a part gathers its
elements. Others interleave two results, gate and up, as every second column, which no epilogue
finds at one distance from each other. The rows of the weight are put in the order of the parts
instead, when the model is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from ..ir.dims import equal_shapes
from ..ir.graph import Graph
from ..ir.node import Node
from ..ir.ops import model
from ..ir.ops import tensor as t
from ..ir.rewrite import rewrite
from .rules.movement import MOVEMENT
from .rules.values import reshaped
from .split_preparation import constants_of


@dataclass(frozen=True)
class OrderColumns:
    """Linears over constant weights whose results are read in parts of each group, or of every
    second column.
    """

    name: ClassVar[str] = "order-columns"

    def run(self, graph: Graph) -> Graph:
        """The graph with each part a run of columns; columns that nothing reads are gone."""
        constant = constants_of(graph)
        mapping: dict[Node, Node] = {}
        for node in graph.nodes():
            weights = _weights(node)
            if not weights or not constant.issuperset(weights):
                continue
            if parts := _interleaved(graph, node):
                mapping |= _side_by_side(node, parts)
            elif node.op is model.linear and (parts := _parts(graph, node)):
                mapping |= _ordered(node, parts)
        return rewrite(graph.replace(mapping), MOVEMENT) if mapping else graph


def _weights(node: Node) -> tuple[Node, ...]:
    """The weight of a linear, and its bias; nothing for other nodes."""
    if node.op is model.linear:
        return node.inputs[1:]
    return (node.inputs[1], *node.inputs[3:]) if node.op is model.expert_linear else ()


def _interleaved(graph: Graph, linear: Node) -> list[Node]:
    """The slices y[.., i::n], i = 0 .. n - 1, where all that is read of a linear are these."""
    axis, parts = len(linear.shape) - 1, list(graph.users(linear))
    if linear in graph.outputs or len(parts) < 2:
        return []
    if not all(p.op is t.slice_ and p["axis"] == axis and p["step"] == len(parts) for p in parts):
        return []
    parts.sort(key=lambda p: p["start"])
    alike = all(equal_shapes(p.shape, parts[0].shape) for p in parts)
    whole = int(parts[0].shape[-1]) * len(parts) == linear.shape[-1]
    return parts if alike and whole and [p["start"] for p in parts] == [*range(len(parts))] else []


def _side_by_side(linear: Node, parts: Sequence[Node]) -> dict[Node, Node]:
    """Each part out of the linear with its weight's rows in the order of the parts."""
    axis = int(linear.op is model.expert_linear)  # behind that of the experts

    def rows(weight: Node) -> Node:
        spans = ({k: p[k] for k in ("start", "stop", "step")} for p in parts)
        return t.concat(*(t.slice_(weight, axis=axis, **span) for span in spans), axis=axis)

    new = {w: rows(w) for w in _weights(linear)}
    made = linear.with_inputs(tuple(new.get(i, i) for i in linear.inputs))
    size, last = int(parts[0].shape[-1]), len(linear.shape) - 1
    return {
        part: t.slice_(made, axis=last, start=at * size, stop=(at + 1) * size)
        for at, part in enumerate(parts)
    }


def _parts(graph: Graph, linear: Node) -> list[Node]:
    """The slices y[.., G, a:b] that are all that is read of a linear, in the order of their
    columns; none where it is read otherwise, or none of them is flattened.
    """
    users = graph.users(linear)
    if linear in graph.outputs or len(users) != 1 or users[0].op is not t.reshape:
        return []
    apart = users[0]
    lead = linear.shape[:-1]
    grouped = len(apart.shape) == len(linear.shape) + 1 and equal_shapes(apart.shape[:-2], lead)
    if not grouped or apart in graph.outputs or apart.shape[-2] == 1:
        return []
    parts = list(graph.users(apart))
    if not all(_is_run(p, len(apart.shape) - 1) for p in parts):
        return []
    parts.sort(key=lambda p: (p["start"], p["stop"]))
    if any(a["stop"] > b["start"] for a, b in pairwise(parts)):
        return []
    flat = any(_is_flat(u, lead) for p in parts for u in graph.users(p))
    return parts if flat and len(parts) > 1 else []


def _is_run(node: Node, axis: int) -> bool:
    whole = node.op is t.slice_ and node["axis"] == axis and node["step"] == 1
    return whole and all(isinstance(node[end], int) for end in ("start", "stop"))


def _is_flat(node: Node, lead: Sequence[object]) -> bool:
    """Whether a reshape of a part has its groups and columns in one axis."""
    return node.op is t.reshape and len(node.shape) == len(lead) + 1


def _ordered(linear: Node, parts: Sequence[Node]) -> dict[Node, Node]:
    """Each part out of the linear with its weight's rows in the order of the parts."""
    x, *weights = linear.inputs
    groups = int(parts[0].shape[-2])
    made = model.linear(x, *(_rows(w, parts, groups) for w in weights))
    found: dict[Node, Node] = {}
    begin, axis = 0, len(linear.shape) - 1
    for part in parts:
        end = begin + groups * int(part.shape[-1])
        run = t.slice_(made, axis=axis, start=begin, stop=end)
        found[part] = reshaped(run, part.shape)
        begin = end
    return found


def _rows(weight: Node, parts: Sequence[Node], groups: int) -> Node:
    """Rows of w[N, K], or elements of a bias[N], in the order of the parts."""
    rows, *rest = weight.shape
    apart = reshaped(weight, (groups, int(rows) // groups, *rest))
    pieces = (t.slice_(apart, axis=1, start=p["start"], stop=p["stop"]) for p in parts)
    flat = [reshaped(p, (groups * int(p.shape[1]), *rest)) for p in pieces]
    return t.concat(*flat, axis=0)
