"""ATen ops of angles: the inverses of the circular and the hyperbolic functions."""

from __future__ import annotations

import math

from ...ir.node import Node
from ...ir.ops import tensor as t
from .table import Call, Table, cast, operand, widened

TABLE = Table()
# atan(x) = x + x z P(z), z = x^2, for |x| below tan(pi / 8) (Moshier's Cephes, atanf).
_ATAN = (8.05374449538e-2, -1.38776856032e-1, 1.99777106478e-1, -3.33329491539e-1)
_STEEP, _SLANTED = 2.414213562373095, 0.4142135623730950  # tan(3 pi / 8), tan(pi / 8)


def _number(value: float, like: Node) -> Node:
    return operand(value, like.dtype)


def _wide(call: Call, x: Node) -> Node:
    return cast(x, widened(call.dtype))


def _atan(x: Node) -> Node:
    size = t.abs_(x)
    is_steep, is_slanted = (t.gt(size, _number(v, x)) for v in (_STEEP, _SLANTED))
    one = _number(1.0, x)
    slanted = t.div(t.sub(size, one), t.add(size, one))
    y = t.where(is_steep, t.neg(t.reciprocal(size)), t.where(is_slanted, slanted, size))
    z, total = t.mul(y, y), _number(_ATAN[0], x)
    for factor in _ATAN[1:]:
        total = t.add(t.mul(total, z), _number(factor, x))
    turned = t.add(y, t.mul(t.mul(total, z), y))
    quarter, eighth = _number(math.pi / 2, x), _number(math.pi / 4, x)
    first = t.where(is_steep, quarter, t.where(is_slanted, eighth, _number(0.0, x)))
    return t.mul(t.sign(x), t.add(first, turned))


@TABLE("atan", "arctan")
def atan(call: Call, x: Node) -> Node:
    """The angle of a slope, within a few units of float32's last place."""
    return cast(_atan(_wide(call, x)), call.dtype)


@TABLE("atan2", "arctan2")
def atan2(call: Call, y: Node, x: Node) -> Node:
    """The angle of (x, y), from -pi to pi."""
    y, x = _wide(call, y), _wide(call, x)
    zero, half = _number(0.0, x), _number(math.pi, x)
    upright, level = t.eq(x, zero), t.eq(y, zero)
    by = t.where(t.logical_and(upright, level), _number(1.0, x), t.where(upright, zero, x))
    slope = t.div(y, by)
    behind = t.where(t.lt(y, zero), t.neg(half), half)
    turned = t.add(_atan(slope), t.where(t.lt(x, zero), behind, zero))
    return cast(turned, call.dtype)


def _asin(x: Node) -> Node:
    one = _number(1.0, x)
    return _atan(t.div(x, t.sqrt(t.mul(t.sub(one, x), t.add(one, x)))))


@TABLE("asin", "arcsin")
def asin(call: Call, x: Node) -> Node:
    """The angle of a sine."""
    return cast(_asin(_wide(call, x)), call.dtype)


@TABLE("acos", "arccos")
def acos(call: Call, x: Node) -> Node:
    """The angle of a cosine."""
    x = _wide(call, x)
    return cast(t.sub(_number(math.pi / 2, x), _asin(x)), call.dtype)


@TABLE("asinh", "arcsinh")
def asinh(call: Call, x: Node) -> Node:
    """sign(x) log(|x| + sqrt(x^2 + 1)), by log1p where x is small."""
    x = _wide(call, x)
    size, one = t.abs_(x), _number(1.0, x)
    square = t.mul(x, x)
    more = t.div(square, t.add(one, t.sqrt(t.add(square, one))))
    return cast(t.mul(t.sign(x), t.log1p(t.add(size, more))), call.dtype)


@TABLE("acosh", "arccosh")
def acosh(call: Call, x: Node) -> Node:
    """log(x + sqrt(x^2 - 1)), by log1p where x is near 1."""
    x = _wide(call, x)
    above = t.sub(x, _number(1.0, x))
    root = t.sqrt(t.mul(above, t.add(above, _number(2.0, x))))
    return cast(t.log1p(t.add(above, root)), call.dtype)


@TABLE("atanh", "arctanh")
def atanh(call: Call, x: Node) -> Node:
    """log((1 + x) / (1 - x)) / 2."""
    x = _wide(call, x)
    both = t.sub(t.log1p(x), t.log1p(t.neg(x)))
    return cast(t.mul(both, _number(0.5, x)), call.dtype)
