"""Expert linears over quantized weights: each row by the codes of its expert, summed as the
quantized linears sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...ir.node import Node
from ...ir.ops.quantized import operands
from ...ir.target import Target
from ..space import Space
from .function import Anchor, Kernel
from .isa import isa_of
from .loops import Place
from .quantized import (
    beginnings,
    integer_scheme,
    integer_tiles,
    wide_operand,
    wide_scheme,
    wide_tiles,
)
from .quantized_tiles import group_sums
from .routed import Stack, emit_routed, routed_spaces, unspread


def _stack(node: Node) -> Stack:
    found = operands(node)
    assert found.experts is not None, node
    weights = (found.codes, found.scale, found.multipliers, found.zeros)
    return Stack(tuple(w for w in weights if w is not None), found.experts)


def _with_index(kernel: Kernel, node: Node, needed: Mapping[Node, str]) -> dict[Node, str]:
    index = _stack(node).index
    return {**needed, **({} if index in kernel.places else {index: index.dtype})}


def _wide_operand(node: Node) -> Node:
    return wide_operand(node, unspread(node.inputs[0]))


def emit_wide(kernel: Kernel, node: Node, results: Mapping[Node, Place]) -> None:
    """Emit a packed_quantized_expert_linear."""
    scheme, x = wide_scheme(kernel, node), _wide_operand(node)
    kernel.places.update(emit_routed(kernel, node, x, _stack(node), results, scheme))


def emit_integer(kernel: Kernel, node: Node, results: Mapping[Node, Place]) -> None:
    """Emit a packed_integer_expert_linear."""
    x, x_scale = _integer_operands(node)
    places = kernel.places
    pairs = zip(beginnings(kernel, node), beginnings(kernel, node, x), strict=True)
    beside = {node.inputs[1]: places[x_scale]} | {own: places[begin] for own, begin in pairs}
    if kernel.isa.has_integer_tiles:
        beside[group_sums(node.inputs[0])] = places[group_sums(x)]
    inner = replace(kernel, places={**places, **beside})
    scheme = integer_scheme(kernel, node)
    kernel.places.update(emit_routed(inner, node, x, _stack(node), results, scheme))


def _integer_operands(node: Node) -> tuple[Node, Node]:
    """Activations in int8 and their scales, of each token once."""
    return unspread(node.inputs[0], 2), unspread(node.inputs[1], 1)


def _integer_needs(kernel: Kernel, node: Node) -> dict[Node, str]:
    x, x_scale = _integer_operands(node)
    needed = {x: "i8", x_scale: "f32"} | dict.fromkeys(beginnings(kernel, node, x), "i32")
    return needed | ({group_sums(x): "i32"} if kernel.isa.has_integer_tiles else {})


def _integer_spaces(node: Node, target: Target) -> tuple[Space, ...]:
    return routed_spaces(node, target, integer_tiles(isa_of(target), node), "i8")


QUANTIZED_EXPERT = Anchor(
    lambda kernel, node: _with_index(kernel, node, {_wide_operand(node): "f32"}),
    emit_wide,
    lambda node, target: routed_spaces(node, target, wide_tiles(isa_of(target)), "f32"),
)
INTEGER_EXPERT = Anchor(
    lambda kernel, node: _with_index(kernel, node, _integer_needs(kernel, node)),
    emit_integer,
    _integer_spaces,
)
