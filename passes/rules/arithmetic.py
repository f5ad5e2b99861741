"""Identities of elementwise ops, named by their algebra. Values change by rounding at most."""

from __future__ import annotations

import math
from fractions import Fraction

from ...ir.dims import product
from ...ir.node import Node
from ...ir.ops import tensor as t
from ...ir.rewrite import Rules, hole, number
from ...ir.types import INTEGERS
from .values import filled, fitted, holds, literal

ARITHMETIC = Rules("arithmetic")
x, y, z, c, d = hole("x"), hole("y"), hole("z"), number("c"), number("d")
condition = hole("condition")


# -- neutral elements


@ARITHMETIC.on(t.add(x, c))
def x_plus_zero(root: Node, x: Node, c: float) -> Node | None:
    """x + 0 = x."""
    return fitted(root, x) if c == 0 else None


@ARITHMETIC.on(t.sub(x, c))
def x_minus_zero(root: Node, x: Node, c: float) -> Node | None:
    """x - 0 = x."""
    return fitted(root, x) if c == 0 else None


@ARITHMETIC.on(t.mul(x, c))
def x_times_one(root: Node, x: Node, c: float) -> Node | None:
    """x * 1 = x; x * -1 = -x; 0 of integers."""
    if c == 1:
        return fitted(root, x)
    if c == -1:
        return fitted(root, t.neg(x))
    return filled(root, 0) if c == 0 and root.dtype in INTEGERS else None


@ARITHMETIC.on(t.div(x, c))
def x_over_one(root: Node, x: Node, c: float) -> Node | None:
    """x / 1 = x; x / 2^n = x * 2^-n, which is exact."""
    if c == 1:
        return fitted(root, x)
    if not math.isfinite(c) or abs(math.frexp(c)[0]) != 0.5 or not 2.0**-14 <= abs(c) <= 2.0**14:
        return None
    return t.mul(x, t.scalar(1.0 / c, root.dtype))


@ARITHMETIC.on(t.floordiv(x, c))
def x_floordiv_one(root: Node, x: Node, c: float) -> Node | None:
    """x // 1 = x for integers."""
    return fitted(root, x) if c == 1 and root.dtype in INTEGERS else None


@ARITHMETIC.on(t.mul(t.mul(x, c), d))
def merge_factors(root: Node, x: Node, c: float, d: float) -> Node | None:
    """(x * c) * d = x * (c d), where no factor leaves the range of the dtype."""
    factors = (abs(float(c)), abs(float(d)), abs(float(c) * float(d)))
    if root.dtype not in ("f32", "f64") or not all(1e-30 < f < 1e30 for f in factors):
        return None
    return fitted(root, t.mul(x, t.scalar(float(c) * float(d), root.dtype)))


# -- signs and powers


@ARITHMETIC.on(t.neg(t.neg(x)))
def neg_of_neg(root: Node, x: Node) -> Node:
    """-(-x) = x."""
    return x


@ARITHMETIC.on(t.sub(c, x))
def zero_minus_x(root: Node, x: Node, c: float) -> Node | None:
    """0 - x = -x."""
    return fitted(root, t.neg(x)) if c == 0 else None


@ARITHMETIC.on(t.add(x, t.neg(y)))
def x_plus_neg(root: Node, x: Node, y: Node) -> Node:
    """x + -y = x - y."""
    return t.sub(x, y)


@ARITHMETIC.on(t.sub(x, t.neg(y)))
def x_minus_neg(root: Node, x: Node, y: Node) -> Node:
    """x - -y = x + y."""
    return t.add(x, y)


@ARITHMETIC.on(t.pow_(x, c))
def pow_of_small(root: Node, x: Node, c: float) -> Node | None:
    """x^1, x^2, x^3, x^0.5, x^-0.5 and x^-1 without pow."""
    if c == 1:
        return fitted(root, x)
    if c in (2, 3):
        square = t.mul(x, x)
        return fitted(root, square if c == 2 else t.mul(square, x))
    if root.dtype in INTEGERS:
        return None
    spelled = {0.5: t.sqrt, -0.5: t.rsqrt, -1: t.reciprocal}.get(c)
    return fitted(root, spelled(x)) if spelled else None


@ARITHMETIC.on(t.div(c, x))
def one_over_x(root: Node, x: Node, c: float) -> Node | None:
    """1 / x = reciprocal(x)."""
    return fitted(root, t.reciprocal(x)) if c == 1 else None


@ARITHMETIC.on(t.reciprocal(t.sqrt(x)))
def reciprocal_of_sqrt(root: Node, x: Node) -> Node:
    """1 / sqrt(x) = rsqrt(x)."""
    return t.rsqrt(x)


@ARITHMETIC.on(t.sqrt(t.reciprocal(x)))
def sqrt_of_reciprocal(root: Node, x: Node) -> Node:
    """sqrt(1 / x) = rsqrt(x)."""
    return t.rsqrt(x)


@ARITHMETIC.on(t.div(x, t.sqrt(y)))
def x_over_sqrt(root: Node, x: Node, y: Node) -> Node:
    """x / sqrt(y) = x * rsqrt(y)."""
    return t.mul(x, t.rsqrt(y))


@ARITHMETIC.on(t.div(x, t.rsqrt(y)))
def x_over_rsqrt(root: Node, x: Node, y: Node) -> Node:
    """x / rsqrt(y) = x * sqrt(y)."""
    return t.mul(x, t.sqrt(y))


@ARITHMETIC.on(t.div(t.reduce_sum(x), c))
def mean_by_division(root: Node, x: Node, c: float) -> Node | None:
    """sum(x) / n = sum(x) * (1 / n), n the number of terms: means have one form."""
    total = next(i for i in root.inputs if i.op is t.reduce_sum)
    axes: tuple[int, ...] = total["axes"]
    count = product(x.shape[a] for a in axes)
    if count != c or Fraction(c) == 0:
        return None
    return t.mul(total, t.scalar(1.0 / c, root.dtype))


@ARITHMETIC.on(t.maximum(x, c))
def maximum_with_zero(root: Node, x: Node, c: float) -> Node | None:
    """max(x, 0) = relu(x)."""
    return fitted(root, t.relu(x)) if c == 0 and root.tensor.is_float else None


# -- casts


@ARITHMETIC.on(t.cast(x))
def cast_to_itself(root: Node, x: Node) -> Node | None:
    """cast(x) to x's own dtype = x."""
    return x if root.dtype == x.dtype else None


@ARITHMETIC.on(t.cast(t.cast(x)))
def cast_of_widening(root: Node, x: Node) -> Node | None:
    """cast(cast(x)) = cast(x) where the inner cast loses nothing."""
    inner = root.inputs[0]
    return t.cast(x, dtype=root.dtype) if holds(inner.dtype, x.dtype) else None


# -- conditions


@ARITHMETIC.on(t.where(condition, x, y))
def where_known(root: Node, condition: Node, x: Node, y: Node) -> Node | None:
    """where(true, x, y) = x; where(false, x, y) = y; where(c, x, x) = x."""
    known = literal(condition)
    if known is not None:
        return fitted(root, x if known else y)
    return fitted(root, x) if x is y else None


@ARITHMETIC.on(t.where(t.logical_not(condition), x, y))
def where_not(root: Node, condition: Node, x: Node, y: Node) -> Node | None:
    """where(not c, x, y) = where(c, y, x)."""
    return t.where(condition, y, x) if condition.dtype == "bool" else None


@ARITHMETIC.on(t.bitwise_and(x, y))
def bitwise_and_of_bools(root: Node, x: Node, y: Node) -> Node | None:
    """x & y = x and y for bools."""
    return t.logical_and(x, y) if root.dtype == "bool" else None


@ARITHMETIC.on(t.bitwise_or(x, y))
def bitwise_or_of_bools(root: Node, x: Node, y: Node) -> Node | None:
    """x | y = x or y for bools."""
    return t.logical_or(x, y) if root.dtype == "bool" else None


@ARITHMETIC.on(t.bitwise_not(x))
def bitwise_not_of_bools(root: Node, x: Node) -> Node | None:
    """~x = not x for bools."""
    return t.logical_not(x) if root.dtype == "bool" else None


@ARITHMETIC.on(t.logical_and(x, c))
def and_known(root: Node, x: Node, c: float) -> Node | None:
    """x and true = x; x and false = false."""
    return fitted(root, x) if c else filled(root, False)


@ARITHMETIC.on(t.logical_or(x, c))
def or_known(root: Node, x: Node, c: float) -> Node | None:
    """x or false = x; x or true = true."""
    return filled(root, True) if c else fitted(root, x)


@ARITHMETIC.on(t.logical_and(x, x))
def and_of_same(root: Node, x: Node) -> Node | None:
    """x and x = x for bools."""
    return fitted(root, x)


@ARITHMETIC.on(t.logical_or(x, x))
def or_of_same(root: Node, x: Node) -> Node | None:
    """x or x = x for bools."""
    return fitted(root, x)


@ARITHMETIC.on(t.logical_not(t.logical_not(x)))
def not_of_not(root: Node, x: Node) -> Node | None:
    """not not x = x for bools."""
    return x if x.dtype == "bool" else None
