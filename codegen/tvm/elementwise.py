"""Elementwise ops: one expression of the operands' values for each op."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tvm import tirx

from ...ir.node import Node
from . import mathematics as m
from .values import COMPUTED, Expr, bind_opaque, cast, const, dtype_of, is_nan

Emit = Callable[..., Expr]


def _like(value: float, x: Expr) -> Expr:
    return const(value, dtype_of(x))


def _is_float(x: Expr) -> bool:
    return dtype_of(x).startswith("float")


def _sign(x: Expr) -> Expr:
    x = bind_opaque(x)
    below = tirx.Select(tirx.LT(x, _like(0, x)), _like(-1, x), x * _like(0, x))
    return bind_opaque(tirx.Select(tirx.GT(x, _like(0, x)), _like(1, x), below))


def _unsigned(x: Expr) -> bool:
    return dtype_of(x).startswith(("uint", "bool"))


def _abs(x: Expr) -> Expr:
    return x if _unsigned(x) else tirx.abs(x)


def _relu(x: Expr) -> Expr:
    x = bind_opaque(x)
    return x if _unsigned(x) else bind_opaque(tirx.Select(tirx.LT(x, _like(0, x)), _like(0, x), x))


def _rounded(name: str) -> Emit:
    def emit(x: Expr) -> Expr:
        return bind_opaque(getattr(tirx, name)(x)) if _is_float(x) else x

    return emit


def _maximum(x: Expr, y: Expr) -> Expr:
    """The larger; a NaN on either side is kept, as in numpy."""
    x, y = bind_opaque(x), bind_opaque(y)
    if dtype_of(x) == "bool":
        return tirx.Or(x, y)
    larger = tirx.Select(tirx.GT(x, y), x, y)
    return bind_opaque(tirx.Select(is_nan(x), x, larger) if _is_float(x) else larger)


def _minimum(x: Expr, y: Expr) -> Expr:
    x, y = bind_opaque(x), bind_opaque(y)
    if dtype_of(x) == "bool":
        return tirx.And(x, y)
    smaller = tirx.Select(tirx.LT(x, y), x, y)
    return bind_opaque(tirx.Select(is_nan(x), x, smaller) if _is_float(x) else smaller)


def _floordiv(x: Expr, y: Expr) -> Expr:
    return bind_opaque(tirx.floor(x / y)) if _is_float(x) else bind_opaque(tirx.floordiv(x, y))


def _mod(x: Expr, y: Expr) -> Expr:
    if not _is_float(x):
        return bind_opaque(tirx.floormod(x, y))
    x, y = bind_opaque(x), bind_opaque(y)
    return bind_opaque(x - tirx.floor(x / y) * y)


def _truth(x: Expr) -> Expr:
    return cast(x, "bool")


def _bits(name: str, both: Callable[[Expr, Expr], Expr]) -> Emit:
    def emit(x: Expr, y: Expr) -> Expr:
        return both(x, y) if dtype_of(x) == "bool" else getattr(tirx.op, name)(x, y)

    return emit


def _bitwise_xor(x: Expr, y: Expr) -> Expr:
    return _compare(tirx.NE)(x, y) if dtype_of(x) == "bool" else tirx.op.bitwise_xor(x, y)


def _bitwise_not(x: Expr) -> Expr:
    return tirx.Not(x) if dtype_of(x) == "bool" else tirx.op.bitwise_not(x)


def _compare(comparison: Callable[[Expr, Expr], Expr]) -> Emit:
    def emit(x: Expr, y: Expr) -> Expr:
        if dtype_of(x) == "bool":
            x, y = cast(x, "int8"), cast(y, "int8")
        return comparison(x, y)

    return emit


def _times(x: Expr, y: Expr) -> Expr:
    return tirx.And(x, y) if dtype_of(x) == "bool" else x * y


def _plus(x: Expr, y: Expr) -> Expr:
    return tirx.Or(x, y) if dtype_of(x) == "bool" else x + y


def _silu(x: Expr) -> Expr:
    x = bind_opaque(x)
    return x * m.sigmoid(x)


def _rsqrt(x: Expr) -> Expr:
    return bind_opaque(_like(1, x) / tirx.sqrt(x))


EMIT: Mapping[str, Emit] = {
    "neg": lambda x: -x,
    "abs": _abs,
    "exp": m.exp,
    "expm1": m.expm1,
    "log": m.log,
    "log1p": m.log1p,
    "sqrt": lambda x: bind_opaque(tirx.sqrt(x)),
    "rsqrt": _rsqrt,
    "reciprocal": lambda x: bind_opaque(_like(1, x) / x),
    "sin": m.sin,
    "cos": m.cos,
    "tanh": m.tanh,
    "sigmoid": m.sigmoid,
    "erf": m.erf,
    "erfinv": m.erfinv,
    "floor": _rounded("floor"),
    "ceil": _rounded("ceil"),
    "round": _rounded("nearbyint"),
    "sign": _sign,
    "relu": _relu,
    "silu": _silu,
    "logical_not": lambda x: tirx.Not(_truth(x)),
    "bitwise_not": _bitwise_not,
    "add": _plus,
    "sub": lambda x, y: x - y,
    "mul": _times,
    "div": lambda x, y: bind_opaque(x / y),
    "floordiv": _floordiv,
    "mod": _mod,
    "pow": m.power,
    "maximum": _maximum,
    "minimum": _minimum,
    "eq": _compare(tirx.EQ),
    "ne": _compare(tirx.NE),
    "lt": _compare(tirx.LT),
    "le": _compare(tirx.LE),
    "gt": _compare(tirx.GT),
    "ge": _compare(tirx.GE),
    "logical_and": lambda x, y: tirx.And(_truth(x), _truth(y)),
    "logical_or": lambda x, y: tirx.Or(_truth(x), _truth(y)),
    "bitwise_and": _bits("bitwise_and", tirx.And),
    "bitwise_or": _bits("bitwise_or", tirx.Or),
    "bitwise_xor": _bitwise_xor,
    "where": lambda c, x, y: tirx.Select(c, x, y),
    "gelu": m.gelu,
    "softplus": m.softplus,
}
"""Op name -> the expression of its operands."""

COST: Mapping[str, int] = {
    "exp": 12,
    "expm1": 30,
    "log": 15,
    "log1p": 20,
    "sqrt": 6,
    "rsqrt": 8,
    "reciprocal": 4,
    "sin": 20,
    "cos": 20,
    "tanh": 12,
    "sigmoid": 16,
    "erf": 14,
    "erfinv": 40,
    "silu": 16,
    "gelu": 18,
    "softplus": 45,
    "pow": 20,
    "div": 4,
    "floordiv": 6,
    "mod": 8,
    "cast": 0,
}
"""Rough cycles of a vector; 1 where an op is not named."""


def elementwise(node: Node, operands: list[Expr]) -> Expr:
    """The value of an elementwise node from the values of its inputs."""
    name = node.op.name
    if name == "cast":
        return _cast(node, operands[0])
    if name == "gelu":
        return m.gelu(operands[0], node["approximate"])
    if name == "softplus":
        return m.softplus(operands[0], float(node["beta"]), float(node["threshold"]))
    return EMIT[name](*operands)


def _cast(node: Node, x: Expr) -> Expr:
    """Between float types nothing is rounded in a register; rounding happens where a value is
    stored.
    """
    wanted, source = COMPUTED[node.dtype], node.inputs[0].dtype
    if source in ("f32", "f64") or node.dtype not in ("u8", "i8", "i16"):
        return cast(x, wanted)
    return cast(x, wanted)
