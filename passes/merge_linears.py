"""Merge linears: those that read one value become one, by the concatenation of their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..ir.graph import Graph
from ..ir.node import Node
from ..ir.ops import model
from ..ir.ops import tensor as t


@dataclass(frozen=True)
class MergeLinears:
    """Linears over one value become one linear and slices of its result, as q/k/v and gate/up.

    Left alone: a linear whose result is an output, and one whose weight another op reads too (a
    tied embedding would be stored twice).
    """

    name: ClassVar[str] = "merge-linears"

    def run(self, graph: Graph) -> Graph:
        """The graph with one linear for each value that several read."""
        constant = _constants(graph)
        together: dict[tuple[object, ...], list[Node]] = {}
        for node in graph.nodes():
            if node.op is model.linear and _is_mergeable(graph, node, constant):
                together.setdefault((node.inputs[0], node.dtype), []).append(node)
        mapping: dict[Node, Node] = {}
        for linears in together.values():
            if len(linears) > 1:
                mapping.update(merged(linears))
        return graph.replace(mapping) if mapping else graph


def _constants(graph: Graph) -> set[Node]:
    """The nodes that depend on parameters and constants alone."""
    found: set[Node] = set()
    for node in graph.nodes():
        if node.op.name != "input" and all(i in found for i in node.inputs):
            found.add(node)
    return found


def _is_mergeable(graph: Graph, node: Node, constant: set[Node]) -> bool:
    weights = node.inputs[1:]
    alone = all(graph.users(w) == (node,) for w in weights[:1])
    sized = all(isinstance(d, int) for d in weights[0].shape)
    return alone and sized and node not in graph.outputs and all(w in constant for w in weights)


def merged(linears: Sequence[Node]) -> dict[Node, Node]:
    """Each linear as a slice of one over all the weights, in order; missing biases are zero."""
    x = linears[0].inputs[0]
    parameters = [t.concat(*(n.inputs[1] for n in linears), axis=0)]
    if any(len(n.inputs) > 2 for n in linears):
        parameters.append(t.concat(*(_bias(n) for n in linears), axis=0))
    whole = model.linear(x, *parameters)
    axis, begin = len(x.shape) - 1, 0
    slices: dict[Node, Node] = {}
    for node in linears:
        end = begin + node.inputs[1].shape[0]
        slices[node] = t.slice_(whole, axis=axis, start=begin, stop=end)
        begin = end
    return slices


def _bias(linear: Node) -> Node:
    _, weight, *bias = linear.inputs
    return bias[0] if bias else t.broadcast(t.scalar(0.0, linear.dtype), shape=weight.shape[:1])
