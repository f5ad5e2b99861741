"""Elementwise ops: one Triton expression of the operands' values for each op."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...ir.node import Node
from .values import COMPUTED, is_float, number

Emit = Callable[..., str]

MATHEMATICS = (
    "erfinv",
    "expm1",
    "floordiv",
    "floormod",
    "larger",
    "log1p",
    "log_added",
    "multiplied",
    "nearest",
    "power",
    "smaller",
    "softplus",
    "tanh",
)
"""The functions of templates/mathematics.py that expressions call."""


def _call(name: str) -> Emit:
    return lambda node, *xs: f"{name}({', '.join(xs)})"


def _sign(sign: str) -> Emit:
    return lambda node, x, y: f"{x} {sign} {y}"


def _dtype(node: Node) -> str:
    return node.inputs[-1].dtype


def _is_bool(node: Node) -> bool:
    return _dtype(node) == "bool"


def _by_kind(floats: Emit, others: Emit) -> Emit:
    return lambda node, *xs: (floats if is_float(_dtype(node)) else others)(node, *xs)


def _bools(bools: Emit, others: Emit) -> Emit:
    return lambda node, *xs: (bools if _is_bool(node) else others)(node, *xs)


def _truth(node: Node, x: str) -> str:
    return x if _is_bool(node) else f"({x} != 0)"


def _logical(sign: str) -> Emit:
    return lambda node, x, y: f"{_truth(node, x)} {sign} {_truth(node, y)}"


def _same(node: Node, x: str) -> str:
    return x


def _signum(node: Node, x: str) -> str:
    one = "1.0" if is_float(_dtype(node)) else "1"
    return f"tl.where({x} > 0, {one}, tl.where({x} < 0, -{one}, {x})).to({COMPUTED[node.dtype]})"


def _relu(node: Node, x: str) -> str:
    if is_float(_dtype(node)):
        return f"tl.where({x} < 0, 0.0, {x})"
    return x if _unsigned(node) else f"tl.maximum({x}, 0)"


def _unsigned(node: Node) -> bool:
    return _dtype(node) in ("u8", "u4", "bool")


def _gelu(node: Node, x: str) -> str:
    if node["approximate"] == "tanh":
        inner = f"0.7978845608028654 * ({x} + 0.044715 * {x} * {x} * {x})"
        return f"0.5 * {x} * (1.0 + tanh({inner}))"
    return f"0.5 * {x} * (1.0 + tl.erf({x} * 0.7071067811865476))"


def _softplus(node: Node, x: str) -> str:
    return f"softplus({x}, {float(node['beta'])!r}, {float(node['threshold'])!r})"


def _power(node: Node, x: str, y: str) -> str:
    exponent = node.inputs[1]
    if exponent.op.name == "constant":
        n = exponent["value"]
        if n in (1, 2, 3, 4):
            return " * ".join([x] * int(n))
        if n == 0.5:
            return f"tl.sqrt({x})"
        if n == -0.5:
            return f"(1.0 / tl.sqrt({x}))"
    if not is_float(_dtype(node)):
        wide = f"power({x}.to(tl.float64), {y}.to(tl.float64))"
        return f"{wide}.to({COMPUTED[node.dtype]})"
    return f"power({x}, {y})"


def _mod(node: Node, x: str, y: str) -> str:
    if is_float(_dtype(node)):
        return f"{x} - tl.floor({x} / {y}) * {y}"
    return f"floormod({x}, {y})"


def _floordiv(node: Node, x: str, y: str) -> str:
    return f"tl.floor({x} / {y})" if is_float(_dtype(node)) else f"floordiv({x}, {y})"


def _cast(node: Node, x: str) -> str:
    """Between float types nothing is rounded in a register; rounding happens where a value is
    stored.
    """
    wanted, source = COMPUTED[node.dtype], COMPUTED[node.inputs[0].dtype]
    if wanted == "tl.int1" and source != wanted:
        return f"({x} != 0)"
    return x if wanted == source else f"{x}.to({wanted})"


def _where(node: Node, c: str, x: str, y: str) -> str:
    return f"tl.where({c if node.inputs[0].dtype == 'bool' else f'({c} != 0)'}, {x}, {y})"


EMIT: Mapping[str, Emit] = {
    "neg": lambda node, x: f"-{x}",
    "abs": lambda node, x: x if _unsigned(node) else f"tl.abs({x})",
    "exp": _call("tl.exp"),
    "expm1": _call("expm1"),
    "log": _call("tl.log"),
    "log1p": _call("log1p"),
    "sqrt": _call("tl.sqrt"),
    "rsqrt": lambda node, x: f"1.0 / tl.sqrt({x})",
    "reciprocal": lambda node, x: f"1.0 / {x}",
    "sin": _call("tl.sin"),
    "cos": _call("tl.cos"),
    "tanh": _call("tanh"),
    "sigmoid": lambda node, x: f"1.0 / (1.0 + tl.exp(-{x}))",
    "erf": _call("tl.erf"),
    "erfinv": _call("erfinv"),
    "floor": _by_kind(_call("tl.floor"), _same),
    "ceil": _by_kind(_call("tl.ceil"), _same),
    "round": _by_kind(_call("nearest"), _same),
    "sign": _signum,
    "relu": _relu,
    "silu": lambda node, x: f"{x} / (1.0 + tl.exp(-{x}))",
    "logical_not": lambda node, x: f"({_truth(node, x)} == 0)",
    "bitwise_not": _bools(lambda node, x: f"({x} == 0)", lambda node, x: f"~{x}"),
    "add": _bools(_sign("|"), _sign("+")),
    "sub": _sign("-"),
    "mul": _bools(_sign("&"), _sign("*")),
    "div": _sign("/"),
    "floordiv": _floordiv,
    "mod": _mod,
    "pow": _power,
    "maximum": _by_kind(_call("larger"), _bools(_sign("|"), _call("tl.maximum"))),
    "minimum": _by_kind(_call("smaller"), _bools(_sign("&"), _call("tl.minimum"))),
    "eq": _sign("=="),
    "ne": _sign("!="),
    "lt": _sign("<"),
    "le": _sign("<="),
    "gt": _sign(">"),
    "ge": _sign(">="),
    "logical_and": _logical("&"),
    "logical_or": _logical("|"),
    "bitwise_and": _sign("&"),
    "bitwise_or": _sign("|"),
    "bitwise_xor": _sign("^"),
    "where": _where,
    "gelu": _gelu,
    "softplus": _softplus,
    "cast": _cast,
}
"""Op name -> the expression of its operands."""


def elementwise(node: Node, operands: list[str]) -> str:
    """The value of an elementwise node from the values of its inputs, as an expression."""
    return EMIT[node.op.name](node, *operands)


def filler(dtype: str) -> str:
    """What stands where nothing is loaded."""
    return number(0, dtype)
