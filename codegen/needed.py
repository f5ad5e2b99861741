"""How many elements of each value of a kernel body its results need: what a kernel has to read."""

from __future__ import annotations

import sympy

from ..ir.dims import Dim, as_dim, equal, product
from ..ir.graph import Graph
from ..ir.node import Node
from ..ir.types import TensorType

_SAME = frozenset({"reshape", "transpose", "flip", "broadcast", "pad", "slice"})
"""Movements whose input is needed as far as their result is."""


def needed_elements(body: Graph) -> dict[Node, Dim]:
    """Elements of each tensor that the body's results need, each counted once, whole rows of a
    table as often as an index names one.
    """
    found: dict[Node, Dim] = {}
    for output in body.outputs:
        _need(found, output, size_of(output))
    for node in reversed(body.nodes()):
        count = found.get(node, 0)
        for place, source in enumerate(node.inputs):
            _need(found, source, _of_input(node, place, count))
    return found


def size_of(node: Node) -> Dim:
    """Elements of a tensor; 0 for what is none."""
    return product(node.type.shape) if isinstance(node.type, TensorType) else 0


def _need(found: dict[Node, Dim], node: Node, count: Dim) -> None:
    whole, before = size_of(node), found.get(node, 0)
    total = as_dim(before + count)
    full = equal(before, whole) or equal(count, whole) or _exceeds(total, whole)
    found[node] = whole if full else total


def _exceeds(count: Dim, whole: Dim) -> bool:
    """Whether a count is larger for every value of the names."""
    rest = as_dim(whole - count)
    return rest < 0 if isinstance(rest, int) else bool(rest.is_negative)


def _of_input(node: Node, place: int, count: Dim) -> Dim:
    """Elements of an input that so many elements of a node need."""
    source = node.inputs[place]
    whole = size_of(source)
    if place == 0 and node.op.name in ("take", "take_along"):
        return count
    if node.op.name.endswith("expert_linear") and _lies_by_expert(node, place):
        rows, experts = product(node.shape[:-1]), source.shape[0]
        return product((_smaller(rows, experts), *source.shape[1:]))
    follows = node.op.has("elementwise") or node.op.name in _SAME
    if not follows or (equal(count, size_of(node)) and node.op.name != "slice"):
        return whole
    return whole if _exceeds(count, whole) else count


def _lies_by_expert(node: Node, place: int) -> bool:
    """Whether an input has a part for each expert, of which a row takes one."""
    shape, rows = node.inputs[place].shape, node.shape[:-1]
    return len(shape) > 1 and place > 0 and not all(map(equal, shape, rows))


def _smaller(a: Dim, b: Dim) -> Dim:
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else as_dim(sympy.Min(a, b))
