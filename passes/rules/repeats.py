"""Entries of an axis repeated in a row, as grouped heads are: done, and undone."""

from __future__ import annotations

from ...ir.dims import Dim, Shape, equal, equal_shapes, product
from ...ir.node import Node
from ...ir.ops import tensor as t
from .values import reshaped, spread


def repeated(node: Node, heads: Dim) -> Node:
    """A node [B, G, ...] as [B, heads, ...], each of its heads so often in a row."""
    batch, grouped, *tail = node.shape
    if equal(grouped, heads):
        return node
    assert isinstance(grouped, int) and isinstance(heads, int), f"heads {grouped} of {heads}"
    apart = reshaped(node, (batch, grouped, 1, *tail))
    return reshaped(spread(apart, (batch, grouped, heads // grouped, *tail)), (batch, heads, *tail))


def unrepeated(node: Node, axis: int) -> Node | None:
    """The node before an axis was repeated, each entry R times in a row; None where it was not."""
    if node.op is t.transpose:
        inner = unrepeated(node.inputs[0], node["permutation"][axis])
        return None if inner is None else node.with_inputs((inner,))
    if node.op is t.cast:
        inner = unrepeated(node.inputs[0], axis)
        return None if inner is None else node.with_inputs((inner,))
    if node.op is t.broadcast:
        return _before_spread(node, axis)
    if node.op is not t.reshape or node.inputs[0].op is not t.broadcast:
        return None
    wide = node.inputs[0]
    if len(wide.shape) != len(node.shape) + 1 or not _splits(node.shape, wide.shape, axis):
        return None
    thin = _before_spread(wide, axis + 1)
    return (
        None if thin is None else reshaped(thin, (*wide.shape[: axis + 1], *wide.shape[axis + 2 :]))
    )


def _splits(whole: Shape, parts: Shape, axis: int) -> bool:
    """Whether parts is whole with one axis split in two."""
    rest = equal_shapes((*whole[:axis], *whole[axis + 1 :]), (*parts[:axis], *parts[axis + 2 :]))
    return rest and equal(product(parts[axis : axis + 2]), whole[axis])


def _before_spread(node: Node, axis: int) -> Node | None:
    """What a broadcast along one axis alone was made from."""
    source = node.inputs[0]
    wanted = (*node.shape[:axis], 1, *node.shape[axis + 1 :])
    return source if equal_shapes(source.shape, wanted) and node.shape[axis] != 1 else None
