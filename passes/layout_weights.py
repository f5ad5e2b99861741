"""Weights in the layouts that kernels read: linear becomes packed_linear over a weight packed by
ordinary nodes.

The packing depends on parameters alone and is evaluated when the model is compiled. Whatever else
reads such a weight at run time (the embedding's lookup in a table that the head shares) reads it
out of the packed form, so that it is stored once. Columns that are read together (gate and up) lie
side by side: a thread reads one stretch of memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ..ir.errors import IRError
from ..ir.graph import Graph
from ..ir.node import Node
from ..ir.ops import model, quantized, serving, tensor
from ..ir.verify import quote
from .backends import Layout, Layouts
from .layout_codes import PackedCodes
from .read_together import parts_together
from .split_preparation import constants_of

QUANTIZED = (quantized.quantized_linear, quantized.quantized_expert_linear)


@dataclass(frozen=True)
class LayoutWeights:
    """Pack the weights of linears, of experts and quantized or not, in the layout that `layouts`
    gives for their dtype; `integer`: what quantized linears read is quantized to int8 as well.
    """

    name: ClassVar[str] = "layout-weights"
    layouts: Layouts = field(default_factory=dict[str, Layout])
    integer: bool = False

    def run(self, graph: Graph) -> Graph:
        """The graph with packed linears; a linear whose weight is computed at run time is left as
        it is.
        """
        constant = constants_of(graph)
        mapping: dict[Node, Node] = {}
        whole: dict[Node, Node] = {}  # packed weights as views of what they were
        for node in graph.nodes():
            if node.op in (model.linear, model.expert_linear) and node.inputs[1] in constant:
                layout = self._layout(graph, node)
                packed = layout.packed(node.inputs[1])
                whole[node.inputs[1]] = unpacked(packed, layout, node.inputs[1])
                mapping[node] = _packed_op(node, packed, layout)
            elif node.op in QUANTIZED and constant.issuperset(node.inputs[1:3]):
                found, layout = quantized.operands(node), self._layout(graph, node)
                codes, scale, zeros = found.codes, found.scale, found.zeros
                made = PackedCodes.of(codes, scale, layout, zeros, levels=self.integer)
                whole |= made.views(codes, scale, zeros)
                mapping[node] = made.linear(node, integer=self.integer)
        for weight, view in whole.items():
            mapping.update(_readers(graph, constant, weight, view))
        return graph.replace(mapping)

    def _layout(self, graph: Graph, node: Node) -> Layout:
        dtype = node.inputs[1].dtype
        if dtype not in self.layouts:
            known = ", ".join(self.layouts) or "none"
            raise IRError(
                f"the backend lays out weights of {known}, not {dtype}\n{quote(graph, node)}"
            )
        layout = self.layouts[dtype]
        return layout.with_sides(parts_together(graph, node, layout.columns))


def _readers(
    graph: Graph, constant: frozenset[Node], weight: Node, whole: Node
) -> dict[Node, Node]:
    """The nodes that read a packed weight at run time other than as a linear's, reading it
    unpacked in place.
    """
    linears = (model.linear, model.expert_linear, *QUANTIZED)
    users = [u for u in graph.users(weight) if u not in constant and u.op not in linears]
    return {u: u.with_inputs(tuple(whole if i is weight else i for i in u.inputs)) for u in users}


def _packed_op(node: Node, weight: Node, layout: Layout) -> Node:
    x, w, *rest = node.inputs
    op = serving.packed_linear if node.op is model.linear else serving.packed_expert_linear
    return op(x, weight, *rest, n=w.shape[-2], layout=layout.word)


def unpacked(packed: Node, layout: Layout, weight: Node) -> Node:
    """The weight [..., N, K] as a view of its packed form."""
    first = len(weight.shape) - 2
    packed = layout.in_order(packed, first)
    tail = (first + 3,) if layout.depth > 1 else ()
    order = (*range(first), first, first + 2, first + 1, *tail)
    split = tensor.transpose(packed, permutation=order)
    blocks, columns, *depth = split.shape[first:]
    rows, width = blocks * columns, depth[0] * (depth[1] if tail else 1)
    value = tensor.reshape(split, shape=(*weight.shape[:first], rows, width))
    for axis in (first, first + 1):
        if value.shape[axis] != weight.shape[axis]:
            value = tensor.slice_(value, axis=axis, start=0, stop=weight.shape[axis])
    return value
