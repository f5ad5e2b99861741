"""Rows through ops: where an axis of an input reappears in the result when the op keeps its rows
apart.

Row r of the result must need row r of the input and no other. Two passes rest on it: the gather of
the rows that need logits, which rises through such ops, and grouping, which computes a run of such
ops row by row in one kernel.
"""

from __future__ import annotations

from collections.abc import Callable

from ..ir.dims import equal, product
from ..ir.node import Node

Follow = Callable[[Node, int, int], int | None]


def follow(node: Node, at: int, axis: int) -> int | None:
    """The result's axis whose row r needs row r alone of axis `axis` of input number `at`; None
    where rows mix.
    """
    if node.op.has("elementwise"):
        return _from_the_right(node, at, axis)
    rule = _RULES.get(node.op.name)
    return rule(node, at, axis) if rule is not None else None


def _from_the_right(node: Node, at: int, axis: int) -> int:
    return len(node.shape) - len(node.inputs[at].shape) + axis


def _last(node: Node, at: int) -> int:
    return len(node.inputs[at].shape) - 1


def _reduction(node: Node, at: int, axis: int) -> int | None:
    axes = (node["axis"],) if node.op.name == "argmax" else node["axes"]
    if axis in axes:
        return None
    return axis if node["keepdims"] else axis - sum(a < axis for a in axes)


def _other_axis(node: Node, at: int, axis: int) -> int | None:
    return axis if axis != node["axis"] else None


def _not_last(node: Node, at: int, axis: int) -> int | None:
    return axis if at == 0 and axis != _last(node, 0) else None


def _expert_linear(node: Node, at: int, axis: int) -> int | None:
    return axis if at == 2 else _not_last(node, at, axis)


def _routed(node: Node, at: int, axis: int) -> int | None:
    return axis if at == 3 else _not_last(node, at, axis)


def _reshape(node: Node, at: int, axis: int) -> int | None:
    x = node.inputs[0]
    before = product(x.shape[:axis])
    for i, d in enumerate(node.shape):
        if equal(product(node.shape[:i]), before) and equal(d, x.shape[axis]):
            return i
    return None


def _pad(node: Node, at: int, axis: int) -> int | None:
    return axis if node["before"][axis] == 0 and node["after"][axis] == 0 else None


def _take(node: Node, at: int, axis: int) -> int | None:
    if at == 1:
        return node["axis"] + axis
    if axis == node["axis"]:
        return None
    return axis if axis < node["axis"] else axis + len(node.inputs[1].shape) - 1


def _same_rows(node: Node, at: int, axis: int) -> int | None:
    """take_along and scatter: every input has the axis whole, and it is not the one indexed."""
    sizes = [i.shape[axis] for i in node.inputs]
    whole = all(equal(sizes[0], s) for s in sizes)
    return axis if whole and axis != node["axis"] else None


def _matmul(node: Node, at: int, axis: int) -> int | None:
    inner = _last(node, at) if at == 0 else _last(node, at) - 1
    return _from_the_right(node, at, axis) if axis != inner else None


_RULES: dict[str, Follow] = {
    "reduce_sum": _reduction, "reduce_max": _reduction, "reduce_min": _reduction,
    "reduce_prod": _reduction, "argmax": _reduction, "softmax": _other_axis,
    "cumsum": _other_axis, "cumprod": _other_axis, "cummax": _other_axis,
    "logcumsumexp": _other_axis, "topk": _other_axis, "sort": _other_axis,
    "item": lambda node, at, axis: axis,
    "rms_norm": _not_last, "layer_norm": _not_last, "linear": _not_last, "packed_linear": _not_last,
    "quantized_linear": _not_last, "packed_quantized_linear": _not_last,
    "expert_linear": _expert_linear, "packed_expert_linear": _expert_linear,
    "quantized_expert_linear": _routed, "packed_quantized_expert_linear": _routed,
    "reshape": _reshape, "transpose": lambda node, at, axis: node["permutation"].index(axis),
    "broadcast": _from_the_right, "slice": _other_axis, "concat": _other_axis, "pad": _pad,
    "flip": lambda node, at, axis: axis if axis not in node["axes"] else None,
    "take": _take, "take_along": _same_rows, "scatter": _same_rows, "matmul": _matmul,
}  # fmt: skip
