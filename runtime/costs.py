"""What the calls of a step move and compute, by the formulas that a build wrote beside its kernels,
and what a machine allows for it.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Protocol

from ..ir.plan import Call, PlanError, dims_of, evaluate_shape, tensor_bytes

Dims = Mapping[str, int]


@dataclass(frozen=True)
class Traffic:
    """Bytes that a kernel moves: weights and caches, read from memory; and all else, read and
    written, which passes from kernel to kernel through the cores' caches.
    """

    weights: int = 0
    caches: int = 0
    others: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.caches + self.others

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.weights + other.weights, self.caches + other.caches, self.others + other.others
        )


NO_TRAFFIC = Traffic()


class Machine(Protocol):
    """Rates of a machine, all cores together: bytes and operations a second."""

    @property
    def read_bandwidth(self) -> float:
        """From memory."""
        ...

    @property
    def cache_bandwidth(self) -> float:
        """From the cores' own caches."""
        ...

    def peak_of(self, dtype: str) -> float:
        """Operations in a dtype, a multiply-add counted as two."""
        ...


def limits(
    traffic: Traffic, operations: Mapping[str, int], machine: Machine
) -> tuple[float, float]:
    """Seconds that reading and computing take at least."""
    kept = traffic.weights + traffic.caches
    reading = kept / machine.read_bandwidth + traffic.others / machine.cache_bandwidth
    return reading, sum(n / machine.peak_of(dtype) for dtype, n in operations.items())


def sizes_of(call: Call, dims: Dims) -> Dims:
    """The dims as the formulas of a call's kernel name them."""
    names = {n for a in call.arguments for d in a.shape for n in dims_of(d)}
    # A kernel of the rows that need logits is written over T, as its twin over all tokens is.
    return {**dims, "T": dims["R"]} if "R" in names and "T" not in names else dims


def traffic_of(known: Mapping[str, Any], call: Call, dims: Dims) -> Traffic:
    """Bytes of a call by its kernel's formulas; of one without any, of its tensors, each once."""
    if "reads" not in known:
        arguments = dict.fromkeys(call.arguments)
        sizes = (tensor_bytes(a.dtype, evaluate_shape(a.shape, dims)) for a in arguments)
        return Traffic(others=sum(sizes))
    total = Traffic(others=value_of(known["writes"], dims))
    for formula, argument in zip(known["reads"], call.arguments, strict=False):
        size = value_of(formula, dims)
        match argument.kind:
            case "weight":
                total += Traffic(weights=size)
            case "cache":
                total += Traffic(caches=size)
            case _:
                total += Traffic(others=size)
    return total


def operations_of(known: Mapping[str, Any], dims: Dims) -> dict[str, int]:
    """Operations of a call by the dtype of what is multiplied."""
    return {d: value_of(formula, dims) for d, formula in known.get("operations", {}).items()}


def value_of(formula: str, dims: Dims) -> int:
    """The value of a formula such as `512*N*floor(T/N)`; a text is arithmetic and runs nothing."""
    try:
        value = _value(_parsed(formula), dims)
    except (SyntaxError, ValueError, ArithmeticError, KeyError) as error:
        raise PlanError(f"the cost {formula} for the dims {dict(dims)}: {error!r}") from error
    if value.denominator != 1:
        raise PlanError(f"the cost {formula} is {value} for the dims {dict(dims)}")
    return value.numerator


@lru_cache(maxsize=4096)
def _parsed(formula: str) -> ast.expr:
    return ast.parse(formula.strip(), mode="eval").body


def _value(tree: ast.expr, dims: Dims) -> Fraction:
    match tree:
        case ast.Constant(value=int(number)):
            return Fraction(number)
        case ast.Name(id=name):
            return Fraction(dims[name])
        case ast.UnaryOp(op=ast.USub(), operand=x):
            return -_value(x, dims)
        case ast.BinOp(left=x, op=sign, right=y) if type(sign) in _SIGNS:
            return Fraction(_SIGNS[type(sign)](_value(x, dims), _value(y, dims)))
        case ast.Call(func=ast.Name(id=name), args=inputs, keywords=[]) if name in _FUNCTIONS:
            return Fraction(_FUNCTIONS[name](*(_value(i, dims) for i in inputs)))
        case _:
            raise ValueError(f"{ast.unparse(tree)} is no arithmetic of dims")


_SIGNS: Mapping[type[ast.operator], Callable[[Fraction, Fraction], Any]] = {
    ast.Add: lambda x, y: x + y,
    ast.Sub: lambda x, y: x - y,
    ast.Mult: lambda x, y: x * y,
    ast.Div: lambda x, y: x / y,
    ast.FloorDiv: lambda x, y: x // y,
    ast.Mod: lambda x, y: x % y,
    ast.Pow: lambda x, y: x**y,
}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "floor": math.floor,
    "ceiling": math.ceil,
    "Max": max,
    "Min": min,
    "Mod": lambda x, y: x % y,
}
