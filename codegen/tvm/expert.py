"""Expert linears over float weights: y[r] = w[index[r]] x[r] (+ b[index[r]])."""

from __future__ import annotations

from collections.abc import Mapping

from ...ir.node import Node
from ...ir.target import Target
from ..backend import Layout
from ..space import Space
from .floats import float_scheme, operand
from .function import Anchor, Kernel
from .isa import isa_of
from .loops import Place
from .routed import Stack, emit_routed, routed_spaces, unspread


def _operand(node: Node) -> Node:
    return operand(node, unspread(node.inputs[0]))


def _needs(kernel: Kernel, node: Node) -> dict[Node, str]:
    layout = Layout.parse(node["layout"])
    wide = "f64" if node.dtype == "f64" else "f32"
    needed = {_operand(node): "bf16" if layout.depth == 2 else wide}
    index = node.inputs[2]
    return needed if index in kernel.places else {**needed, index: index.dtype}


def emit_expert(kernel: Kernel, node: Node, results: Mapping[Node, Place]) -> None:
    """Emit a packed_expert_linear."""
    stack = Stack(node.inputs[1:2], node.inputs[2])
    scheme = float_scheme(kernel, node, 3)
    kernel.places.update(emit_routed(kernel, node, _operand(node), stack, results, scheme))


def _spaces(node: Node, target: Target) -> tuple[Space, ...]:
    isa, pairs = isa_of(target), Layout.parse(node["layout"]).depth == 2
    tiles = (isa.one, isa.few, isa.many)
    return routed_spaces(node, target, tiles, "bf16" if pairs else "f32")


EXPERT = Anchor(_needs, emit_expert, _spaces)
