"""Functions of complex numbers, as functions of their real and imaginary parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import product
from typing import Any

from ...ir.node import Node
from ...ir.ops import tensor as t
from .table import Builder, Call, Complex, Unsupported, cast, operand
from .trigonometry import atan2

Formula = Callable[..., Any]


def _square(z: Complex) -> Node:
    """|z|^2."""
    return t.add(t.mul(z.real, z.real), t.mul(z.imag, z.imag))


def _exp(builder: Builder, call: Call, z: Complex) -> Complex:
    """e^a (cos b + i sin b)."""
    size = t.exp(z.real)
    return Complex(t.mul(size, t.cos(z.imag)), t.mul(size, t.sin(z.imag)))


def _abs(builder: Builder, call: Call, z: Complex) -> Node:
    return t.sqrt(_square(z))


def _log(builder: Builder, call: Call, z: Complex) -> Complex:
    """log |z| + i angle(z)."""
    half = operand(0.5, z.real.dtype)
    return Complex(t.mul(half, t.log(_square(z))), atan2(call, z.imag, z.real))


def _power(builder: Builder, call: Call, z: Any, y: Any) -> Complex:
    """|z|^y (cos(y angle(z)) + i sin(y angle(z))), for a real y."""
    if not isinstance(z, Complex) or isinstance(y, (Complex, complex)):
        raise Unsupported("a complex number to a real power was wanted, no complex power")
    by = operand(y, call.dtype)
    size, turn = t.pow_(_abs(builder, call, z), by), t.mul(by, atan2(call, z.imag, z.real))
    return Complex(t.mul(size, t.cos(turn)), t.mul(size, t.sin(turn)))


def _reciprocal(builder: Builder, call: Call, z: Complex) -> Complex:
    """The conjugate over |z|^2."""
    square = _square(z)
    return Complex(t.div(z.real, square), t.neg(t.div(z.imag, square)))


def _quotient(builder: Builder, call: Call, x: Any, y: Any, **more: Any) -> Any:
    """x times the conjugate of y over |y|^2."""
    if not isinstance(y, (Complex, complex)):
        return builder(call, x, y, **more)
    z = y if isinstance(y, Complex) else _number(call, y)
    square = _square(z)
    a, b = (t.div(part, square) for part in (z.real, z.imag))
    if not isinstance(x, (Complex, complex)):
        real = operand(x, call.dtype)
        return Complex(t.mul(real, a), t.neg(t.mul(real, b)))
    c = x if isinstance(x, Complex) else _number(call, x)
    real = t.add(t.mul(c.real, a), t.mul(c.imag, b))
    return Complex(real, t.sub(t.mul(c.imag, a), t.mul(c.real, b)))


def _number(call: Call, z: complex) -> Complex:
    return Complex(operand(z.real, call.dtype), operand(z.imag, call.dtype))


def _rest(builder: Builder, call: Call, x: Complex, y: Any, alpha: Any = 1) -> Complex:
    """y - alpha x."""
    by = operand(alpha, call.dtype)
    z = y if isinstance(y, Complex) else _number(call, complex(y))
    parts = (t.sub(b, t.mul(by, a)) for a, b in zip(x, z, strict=True))
    return Complex(*parts)


def _each(builder: Builder, call: Call, z: Complex, *args: Any, **named: Any) -> Complex:
    """A linear function, of both parts."""
    return Complex(*(builder(call, part, *args, **named) for part in z))


def _both(builder: Builder, call: Call, x: Any, y: Any, *more: Any) -> Complex:
    """A product, of matrices too."""
    return _product(call, (x, y), lambda parts: builder(call, *parts, *more))


def _einsum(builder: Builder, call: Call, equation: str, xs: Sequence[Any], **named: Any) -> Any:
    return _product(call, xs, lambda parts: builder(call, equation, list(parts), **named))


def _product(call: Call, xs: Sequence[Any], make: Callable[[Sequence[Node]], Node]) -> Complex:
    """What is linear in each of several, of their real and imaginary parts: i i = -1."""
    found: tuple[list[Node], list[Node]] = ([], [])
    for choice in product((0, 1), repeat=len(xs)):
        parts = [_part(x, which, call.dtype) for x, which in zip(xs, choice, strict=True)]
        if any(p is None for p in parts):
            continue
        made, turns = make([p for p in parts if p is not None]), sum(choice)
        found[turns % 2].append(t.neg(made) if turns % 4 >= 2 else made)
    return Complex(*(reduce(t.add, terms) for terms in found))


def _part(x: Any, which: int, dtype: str) -> Node | None:
    """The real part of a number, or the imaginary one, where it has any."""
    if isinstance(x, Complex):
        return x[which]
    return None if which else cast(x, dtype)


_FORMULAS: dict[str, Formula] = {
    "exp": _exp,
    "log": _log,
    "pow": _power,
    "abs": _abs,
    "reciprocal": _reciprocal,
    "div": _quotient,
    "divide": _quotient,
    "true_divide": _quotient,
    "rsub": _rest,
    "neg": _each,
    "sum": _each,
    "sum.dim_IntList": _each,
    "mean": _each,
    "cumsum": _each,
    "matmul": _both,
    "mm": _both,
    "bmm": _both,
    "einsum": _einsum,
}


def taking_complex(name: str, builder: Builder) -> Builder:
    """A builder that takes complex numbers too, where there is a formula for it."""
    formula = _FORMULAS.get(name)
    if formula is None:
        return builder

    def build(call: Call, *args: Any, **kwargs: Any) -> Any:
        flat = (p for a in args for p in (a if type(a) is list else (a,)))
        if any(isinstance(p, (Complex, complex)) for p in flat):
            return formula(builder, call, *args, **kwargs)
        return builder(call, *args, **kwargs)

    return build
