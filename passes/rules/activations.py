"""Activations and softmax written out by hand."""

from __future__ import annotations

import math

from ...ir.node import Node
from ...ir.ops import tensor as t
from ...ir.rewrite import Rules, any_of, hole, number
from .values import fitted

ACTIVATIONS = Rules("activations")
x, y, top = hole("x"), hole("y"), hole("top")
a, b, half, one, root_two = (number(n) for n in ("a", "b", "half", "one", "root_two"))


def _near(value: float | None, wanted: float) -> bool:
    """Equal to about the digits that sources print."""
    return value is not None and math.isclose(value, wanted, rel_tol=1e-6)


@ACTIVATIONS.on(t.mul(x, t.sigmoid(x)))
def x_times_sigmoid(root: Node, x: Node) -> Node:
    """x sigmoid(x) = silu(x)."""
    return t.silu(x)


@ACTIVATIONS.on(t.div(x, t.add(one, t.exp(t.neg(x)))))
def x_over_one_plus_exp(root: Node, x: Node, one: float) -> Node | None:
    """x / (1 + exp(-x)) = silu(x)."""
    return t.silu(x) if one == 1 else None


@ACTIVATIONS.on(t.reciprocal(t.add(one, t.exp(t.neg(x)))))
def reciprocal_of_one_plus_exp(root: Node, x: Node, one: float) -> Node | None:
    """1 / (1 + exp(-x)) = sigmoid(x)."""
    return t.sigmoid(x) if one == 1 else None


_erf = any_of(t.erf(t.mul(x, root_two)), t.erf(t.div(x, root_two)))
_gate = t.add(one, _erf)


@ACTIVATIONS.on(
    any_of(t.mul(t.mul(x, half), _gate), t.mul(x, t.mul(half, _gate)), t.mul(half, t.mul(x, _gate)))
)
def gelu_by_erf(root: Node, x: Node, half: float, one: float, root_two: float) -> Node | None:
    """0.5 x (1 + erf(x / sqrt 2)) = gelu(x)."""
    by = _near(root_two, math.sqrt(0.5)) or _near(root_two, math.sqrt(2))
    return fitted(root, t.gelu(x)) if by and half == 0.5 and one == 1 else None


_cube = any_of(t.mul(t.mul(x, x), x), t.mul(x, t.mul(x, x)))
_square = t.mul(x, x)
_inner = any_of(
    t.mul(a, t.add(x, t.mul(b, _cube))),
    t.mul(t.mul(a, x), t.add(one, t.mul(t.mul(b, x), x))),
    t.mul(t.mul(a, x), t.add(one, t.mul(b, _square))),
)
_tanh = t.add(one, t.tanh(_inner))


@ACTIVATIONS.on(
    any_of(t.mul(t.mul(x, half), _tanh), t.mul(x, t.mul(half, _tanh)), t.mul(half, t.mul(x, _tanh)))
)
def gelu_by_tanh(root: Node, x: Node, half: float, one: float, a: float, b: float) -> Node | None:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) = gelu(x) by tanh."""
    known = _near(a, math.sqrt(2 / math.pi)) and _near(b, 0.044715) and half == 0.5 and one == 1
    return fitted(root, t.gelu(x, approximate="tanh")) if known else None


_shifted = t.sub(x, t.reduce_max(x))


@ACTIVATIONS.on(t.softmax(_shifted))
def softmax_of_shifted(root: Node, x: Node) -> Node | None:
    """softmax(x - max(x)) = softmax(x), which subtracts the maximum itself."""
    return t.softmax(x, axis=root["axis"]) if _is_along(root.inputs[0], root["axis"]) else None


@ACTIVATIONS.on(t.div(t.exp(y), t.reduce_sum(t.exp(y))))
def softmax_by_exp(root: Node, y: Node) -> Node | None:
    """exp(y) / sum(exp(y)) = softmax(y) where y = x - max(x); a bare exp may overflow."""
    total = root.inputs[1]
    axes = total["axes"]
    shifted = y.op is t.sub and y.inputs[1].op is t.reduce_max
    if not shifted or len(axes) != 1 or not _is_along(y, axes[0]) or not total["keepdims"]:
        return None
    return t.softmax(y, axis=axes[0])


def _is_along(shifted: Node, axis: int) -> bool:
    x, top = shifted.inputs
    same = top.inputs[0] is x and top["axes"] == (axis,)
    return same and bool(top["keepdims"] or axis == 0)
