"""Raise experts: a product with weights taken by index becomes expert_linear, which copies none; so
do products with all experts, of which a few count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..ir.dims import Shape, equal_shapes
from ..ir.errors import IRError
from ..ir.graph import Graph
from ..ir.node import Node
from ..ir.ops import model
from ..ir.ops import tensor as t
from ..ir.ops.tensor import broadcast_shapes
from ..ir.rewrite import Rules, hole, rewrite
from .rules.dense_experts import DENSE_EXPERTS
from .rules.masked_experts import MASKED_EXPERTS
from .rules.movement import MOVEMENT
from .rules.unrolled_experts import UNROLLED_EXPERTS
from .rules.values import reshaped, spread, transposed

EXPERTS = Rules("experts")
x, y = hole("x"), hole("y")


@EXPERTS.on(t.matmul(x, y))
def rows_by_experts(root: Node, x: Node, y: Node) -> Node | None:
    """x[..., M, K] @ W[index] = expert_linear(x, W^T, index) for W[E, K, N]."""
    found = taken_matrices(y)
    if found is None:
        return None
    weights, index = found
    return _expert_rows(x, transposed(weights), index, root.shape)


@EXPERTS.on(t.matmul(x, y))
def experts_by_columns(root: Node, x: Node, y: Node) -> Node | None:
    """W[index] @ x[..., K, M] = expert_linear(x^T, W, index)^T: W[E, N, K]."""
    found = taken_matrices(x)
    if found is None:
        return None
    weights, index = found
    flipped = (*root.shape[:-2], root.shape[-1], root.shape[-2])
    rows = _expert_rows(_turned(y), weights, index, flipped)
    return None if rows is None else _turned(rows)


def _turned(node: Node) -> Node:
    """The node with its last two axes exchanged: a reshape where one of them is 1."""
    shape = (*node.shape[:-2], node.shape[-1], node.shape[-2])
    return reshaped(node, shape) if 1 in node.shape[-2:] else transposed(node)


def taken_matrices(node: Node) -> tuple[Node, Node] | None:
    """(weights[E, I, J], index) where a node is weights[index], perhaps transposed or cast."""
    if node.op is t.take:
        weights, index = node.inputs
        return (weights, index) if node["axis"] == 0 and len(weights.shape) == 3 else None
    if node.op is t.cast:
        found = taken_matrices(node.inputs[0])
        return None if found is None else (t.cast(found[0], dtype=node.dtype), found[1])
    if node.op is not t.transpose:
        return None
    rank = len(node.shape)
    if node["permutation"] != (*range(rank - 2), rank - 1, rank - 2):
        return None
    found = taken_matrices(node.inputs[0])
    return None if found is None else (transposed(found[0]), found[1])


def _expert_rows(x: Node, weights: Node, index: Node, shape: Shape) -> Node | None:
    """expert_linear of x[..., M, K], the index repeated for the M rows, in the wanted shape."""
    lead, rows = shape[:-2], shape[-2]
    try:
        broadcast_shapes(index.shape, lead)
    except IRError:
        return None
    size = x.shape[-1]
    if rows == 1:
        flat = reshaped(spread(x, (*lead, 1, size)), (*lead, size))
        return reshaped(model.expert_linear(flat, weights, spread(index, lead)), shape)
    each = spread(reshaped(spread(index, lead), (*lead, 1)), (*lead, rows))
    return model.expert_linear(spread(x, (*lead, rows, size)), weights, each)


@EXPERTS.on(t.add(x, y))
def experts_bias(root: Node) -> Node | None:
    """expert_linear(x, W, index) + b[index] = expert_linear(x, W, index, b)."""
    for rows, other in (root.inputs, root.inputs[::-1]):
        linear, bias = _unshaped(rows), _unshaped(other)
        if linear.op is not model.expert_linear or len(linear.inputs) != 3:
            continue
        table = _taken_rows(bias, linear)
        if table is None or not equal_shapes(rows.shape, root.shape):
            continue
        # The same axes in both: the bias stands beside the rows, not across them.
        if equal_shapes(other.shape, rows.shape):
            return reshaped(model.expert_linear(*linear.inputs, table), root.shape)
    return None


def _unshaped(node: Node) -> Node:
    return node.inputs[0] if node.op is t.reshape else node


def _taken_rows(bias: Node, linear: Node) -> Node | None:
    """The table b[E, N] where a node is b[index] by the index of an expert_linear."""
    if bias.op is t.cast:
        table = _taken_rows(bias.inputs[0], linear)
        return None if table is None else t.cast(table, dtype=bias.dtype)
    if bias.op is not t.take or bias["axis"] != 0 or bias.inputs[1] is not linear.inputs[2]:
        return None
    table = bias.inputs[0]
    fits = len(table.shape) == 2 and equal_shapes(bias.shape, linear.shape)
    return table if fits and table.dtype == linear.dtype else None


@dataclass(frozen=True)
class RaiseExperts:
    """Products with weights taken by index become expert_linear; transposes move to the weights."""

    name: ClassVar[str] = "raise-experts"

    def run(self, graph: Graph) -> Graph:
        """The graph without a per-row copy of expert weights; the graph is canonical before."""
        return rewrite(
            graph, EXPERTS + DENSE_EXPERTS + UNROLLED_EXPERTS + MASKED_EXPERTS + MOVEMENT
        )
