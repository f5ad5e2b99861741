"""Merge linears: those that read one value become one, by the concatenation of their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..ir.dims import Dim
from ..ir.graph import Graph
from ..ir.node import Node
from ..ir.ops import model
from ..ir.ops import tensor as t
from .rules.values import spread

_FEWEST = {model.linear: 2, model.expert_linear: 3}  # inputs without a bias


@dataclass(frozen=True)
class MergeLinears:
    """Linears over one value become one linear and slices of its result, as q/k/v and gate/up.

    expert_linears over one value and one index likewise. Left alone: a linear whose result is an
    output, and one whose weight another op reads too (a tied embedding would be stored twice), but
    for the linears of layers that share their weights, where each layer has all of them.
    """

    name: ClassVar[str] = "merge-linears"

    def run(self, graph: Graph) -> Graph:
        """The graph with one linear for each value that several read."""
        constant = graph.constants()
        together: dict[tuple[object, ...], list[Node]] = {}
        for node in graph.nodes():
            if node.op in _FEWEST and _is_mergeable(graph, node, constant):
                x, _, *index = node.inputs[: _FEWEST[node.op]]
                together.setdefault((node.op, x, *index, node.dtype), []).append(node)
        mapping: dict[Node, Node] = {}
        parts = {n: tuple(map(_weight, ns)) for ns in together.values() for n in ns}
        for linears in together.values():
            alike = [n for n in linears if _is_shared_alike(graph, n, parts)]
            if len(alike) > 1:
                mapping.update(merged(alike))
        return graph.replace(mapping) if mapping else graph


def _is_mergeable(graph: Graph, node: Node, constant: set[Node]) -> bool:
    weight, bias = _weight(node), node.inputs[_FEWEST[node.op] :]
    fixed = all(w in constant and _is_sized(w) for w in (weight, *bias))
    return fixed and node not in graph.outputs


def _is_shared_alike(graph: Graph, node: Node, parts: Mapping[Node, tuple[Node, ...]]) -> bool:
    """Whether every reader of a linear's weight is a linear beside linears over the same others."""
    return all(parts.get(user) == parts[node] for user in graph.users(_weight(node)))


def _is_sized(node: Node) -> bool:
    return all(isinstance(d, int) for d in node.shape)


def _weight(linear: Node) -> Node:
    return linear.inputs[1]


def merged(linears: Sequence[Node]) -> dict[Node, Node]:
    """Each linear as a slice of one over all the weights, in order; missing biases are zero."""
    first = linears[0]
    fewest = _FEWEST[first.op]
    side = len(_weight(first).shape) - 2  # the rows of w[N, K], of w[E, N, K]
    weight = t.concat(*(_weight(n) for n in linears), axis=side)
    x, _, *more = first.inputs[:fewest]
    if any(len(n.inputs) > fewest for n in linears):
        more.append(t.concat(*(_bias(n, fewest) for n in linears), axis=side))
    whole = first.op.build((x, weight, *more), {})
    begin: Dim = 0
    slices: dict[Node, Node] = {}
    for node in linears:
        end = begin + node.shape[-1]
        slices[node] = t.slice_(whole, axis=len(x.shape) - 1, start=begin, stop=end)
        begin = end
    return slices


def _bias(linear: Node, fewest: int) -> Node:
    """The bias, or zeros in its place."""
    if len(linear.inputs) > fewest:
        return linear.inputs[fewest]
    return spread(t.scalar(0.0, linear.dtype), _weight(linear).shape[:-1])
