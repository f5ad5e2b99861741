"""Functions of numbers that are a formula of others: activations, logarithms, distances."""

from __future__ import annotations

import math
from collections.abc import Callable

from ...ir.node import Node
from ...ir.ops import tensor as t
from .table import Call, Table, Unsupported, axis_of, broadcast, cast, operand, reshape

TABLE = Table()
Formula = Callable[[Node], Node]


def _times(x: Node, factor: float) -> Node:
    return t.mul(x, operand(factor, x.dtype))


def _plus(x: Node, term: float) -> Node:
    return t.add(x, operand(term, x.dtype))


def _half_sum(x: Node, sign: float) -> Node:
    """(exp(x) + sign exp(-x)) / 2."""
    return _times(t.add(t.exp(x), _times(t.exp(t.neg(x)), sign)), 0.5)


_FORMULAS: dict[str, Formula] = {
    "exp2": lambda x: t.exp(_times(x, math.log(2))),
    "log2": lambda x: _times(t.log(x), 1 / math.log(2)),
    "log10": lambda x: _times(t.log(x), 1 / math.log(10)),
    "erfc": lambda x: _plus(t.neg(t.erf(x)), 1.0),
    "sinh": lambda x: _half_sum(x, -1.0),
    "cosh": lambda x: _half_sum(x, 1.0),
    "tan": lambda x: t.div(t.sin(x), t.cos(x)),
    "frac": lambda x: t.sub(x, t.mul(t.sign(x), t.floor(t.abs_(x)))),
    "hardswish": lambda x: t.mul(
        x, _times(t.minimum(t.relu(_plus(x, 3.0)), operand(6.0, x.dtype)), 1 / 6)
    ),
}


def _register() -> None:
    for name, formula in _FORMULAS.items():
        TABLE(name)(lambda call, x, formula=formula: formula(cast(x, call.dtype)))


_register()


@TABLE("logit")
def logit(call: Call, x: Node, eps: float | None = None) -> Node:
    """log(x / (1 - x)), x cut to [eps, 1 - eps] first."""
    x = cast(x, call.dtype)
    if eps is not None:
        x = t.minimum(t.maximum(x, operand(eps, x.dtype)), operand(1 - eps, x.dtype))
    return t.sub(t.log(x), t.log(_plus(t.neg(x), 1.0)))


@TABLE("logaddexp")
def logaddexp(call: Call, x: Node, y: Node) -> Node:
    """log(exp(x) + exp(y)), taken from the larger."""
    x, y = cast(x, call.dtype), cast(y, call.dtype)
    apart = t.neg(t.abs_(t.sub(x, y)))
    return t.add(t.maximum(x, y), t.log1p(t.exp(apart)))


@TABLE("lerp")
def lerp(call: Call, x: Node, end: Node, weight: Node | float) -> Node:
    """x + weight (end - x)."""
    x, end = cast(x, call.dtype), cast(end, call.dtype)
    return t.add(x, t.mul(operand(weight, call.dtype), t.sub(end, x)))


@TABLE("hypot")
def hypot(call: Call, x: Node, y: Node) -> Node:
    """sqrt(x^2 + y^2)."""
    x, y = cast(x, call.dtype), cast(y, call.dtype)
    return t.sqrt(t.add(t.mul(x, x), t.mul(y, y)))


@TABLE("celu")
def celu(call: Call, x: Node, alpha: float = 1.0) -> Node:
    """x above zero, alpha (exp(x / alpha) - 1) below."""
    below = _times(t.expm1(_times(x, 1 / alpha)), alpha)
    return t.where(t.gt(x, operand(0, x.dtype)), x, below)


@TABLE("prelu", "_prelu_kernel")
def prelu(call: Call, x: Node, slope: Node) -> Node:
    """x, or its channel's slope times x below zero; channels are axis 1."""
    if len(slope.shape) == 1 and len(x.shape) > 1:
        slope = reshape(slope, (1, *slope.shape, *(1 for _ in x.shape[2:])))
    return t.where(t.gt(x, operand(0, x.dtype)), x, t.mul(slope, x))


@TABLE("threshold")
def threshold(call: Call, x: Node, least: float, value: float) -> Node:
    """x above the least, else the value."""
    return t.where(t.gt(x, operand(least, x.dtype)), x, operand(value, x.dtype))


@TABLE("hardshrink")
def hardshrink(call: Call, x: Node, lambd: float = 0.5) -> Node:
    """x, zero between -lambd and lambd."""
    far = t.gt(t.abs_(x), operand(lambd, x.dtype))
    return t.where(far, x, operand(0, x.dtype))


@TABLE("softshrink")
def softshrink(call: Call, x: Node, lambd: float = 0.5) -> Node:
    """x nearer to zero by lambd, zero between -lambd and lambd."""
    return t.mul(t.sign(x), t.relu(_plus(t.abs_(x), -lambd)))


@TABLE("glu")
def glu(call: Call, x: Node, dim: int = -1) -> Node:
    """The first half of an axis times the sigmoid of the second."""
    axis = axis_of(dim, len(x.shape))
    half = call.shape[axis]
    first = t.slice_(x, axis=axis, start=0, stop=half)
    second = t.slice_(x, axis=axis, start=half, stop=x.shape[axis])
    return t.mul(first, t.sigmoid(second))


@TABLE("_cdist_forward", "cdist")
def cdist(call: Call, x: Node, y: Node, p: float = 2.0, *_: object) -> Node:
    """The distances of rows x[..., P, M] to rows y[..., R, M], by sums of squares or of sizes."""
    if p not in (1, 2):
        raise Unsupported(f"cdist by the norm {p}")
    rank = len(x.shape)
    wide = (*call.shape, x.shape[-1])
    left = broadcast(reshape(x, (*x.shape[:-1], 1, x.shape[-1])), wide)
    right = broadcast(reshape(y, (*y.shape[:-2], 1, *y.shape[-2:])), wide)
    apart = t.sub(left, right)
    sizes = t.abs_(apart) if p == 1 else t.mul(apart, apart)
    total = t.reduce_sum(sizes, axes=(rank,), keepdims=False)
    return total if p == 1 else t.sqrt(total)


def _without_nan(call: Call, op: Callable[[Node, Node], Node], x: Node, y: Node) -> Node:
    x, y = cast(x, call.dtype), cast(y, call.dtype)
    return t.where(t.ne(x, x), y, t.where(t.ne(y, y), x, op(x, y)))


@TABLE("fmax")
def fmax(call: Call, x: Node, y: Node) -> Node:
    """The larger; of a number and NaN the number."""
    return _without_nan(call, t.maximum, x, y)


@TABLE("fmin")
def fmin(call: Call, x: Node, y: Node) -> Node:
    """The smaller; of a number and NaN the number."""
    return _without_nan(call, t.minimum, x, y)


@TABLE("signbit")
def signbit(call: Call, x: Node) -> Node:
    """Whether a number is negative, or the zero below 0."""
    return _is_below(x)


def _is_below(x: Node) -> Node:
    zero = operand(0, x.dtype)
    if x.dtype[0] in "iu":
        return t.lt(x, zero)
    return t.logical_or(t.lt(x, zero), t.lt(t.reciprocal(x), zero))


@TABLE("copysign")
def copysign(call: Call, x: Node | float, sign: Node | float) -> Node:
    """The size of x with another number's sign."""
    size = t.abs_(operand(x, call.dtype))
    return t.where(_is_below(operand(sign, call.dtype)), t.neg(size), size)


@TABLE("round.decimals")
def round_decimals(call: Call, x: Node, *, decimals: int = 0) -> Node:
    """Rounded at so many decimals, as torch does it: between two products by a power of ten."""
    power = 10.0 ** abs(decimals)
    if decimals < 0:
        return _times(t.round_(t.div(x, operand(power, x.dtype))), power)
    return t.div(t.round_(_times(x, power)), operand(power, x.dtype))


@TABLE("__lshift__.Scalar", "bitwise_left_shift.Tensor_Scalar")
def left_shift(call: Call, x: Node, bits: int) -> Node:
    """x 2^bits, what leaves the integer being lost."""
    return t.mul(x, operand(1 << bits, x.dtype))


@TABLE("__rshift__.Scalar", "bitwise_right_shift.Tensor_Scalar")
def right_shift(call: Call, x: Node, bits: int) -> Node:
    """x 2^-bits, rounded down."""
    return t.floordiv(x, operand(1 << bits, x.dtype))


@TABLE("bilinear")
def bilinear(call: Call, x: Node, y: Node, w: Node, b: Node | None = None) -> Node:
    """sum_ij x_i w[o, i, j] y_j + b."""
    out, rows, columns = w.shape
    lead = x.shape[:-1]
    by_row = t.reshape(t.transpose(w, permutation=(1, 0, 2)), shape=(rows, out * columns))
    made = reshape(t.matmul(x, by_row), (*lead, out, columns))
    other = reshape(y, (*lead, 1, columns))
    total = t.reduce_sum(t.mul(made, other), axes=(len(made.shape) - 1,))
    return total if b is None else t.add(total, b)
