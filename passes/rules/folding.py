"""Constants computed now; broadcasts that elementwise ops imply go away."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...ir.dims import equal_shapes
from ...ir.errors import IRError
from ...ir.node import OPS, Node
from ...ir.ops import tensor as t
from ...ir.rewrite import Pattern, Rules, any_of, hole
from ...ir.types import FLOATS
from .values import filled, literal, rounded, spread

FOLDING = Rules("folding")
x, y, z = hole("x"), hole("y"), hole("z")


def _reciprocal(value: Any) -> Any:
    return 1 / value


def _rsqrt(value: Any) -> Any:
    return 1 / np.sqrt(value)


_NUMPY: dict[str, Callable[..., Any]] = {
    "neg": np.negative, "abs": np.abs, "exp": np.exp, "expm1": np.expm1, "log": np.log,
    "log1p": np.log1p, "sqrt": np.sqrt, "rsqrt": _rsqrt,
    "reciprocal": _reciprocal, "sin": np.sin, "cos": np.cos, "tanh": np.tanh,
    "floor": np.floor, "ceil": np.ceil, "round": np.round, "logical_not": np.logical_not,
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "pow": np.power,
    "floordiv": np.floor_divide, "mod": np.mod, "maximum": np.maximum, "minimum": np.minimum,
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le,
    "gt": operator.gt, "ge": operator.ge, "logical_and": np.logical_and,
    "logical_or": np.logical_or, "where": np.where,
}  # fmt: skip


def _patterns(counts: Sequence[int], known: bool = False) -> Pattern:
    """Any elementwise op (that numpy has, if known) over so many holes."""
    ops = [o for o in OPS.values() if o.has("elementwise") and (not known or o.name in _NUMPY)]
    arity = {o: sum(p not in o.attribute_names for p in _parameters(o.rule)) for o in ops}
    return any_of(*(o(*(x, y, z)[: arity[o]]) for o in ops if arity[o] in counts))


def _parameters(rule: Callable[..., Any]) -> tuple[str, ...]:
    code = rule.__code__
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


@FOLDING.on(_patterns((1, 2, 3), known=True))
def fold_constants(root: Node) -> Node | None:
    """An op on numbers is a number, computed in f32 (f64 for f64) and rounded once."""
    values = [literal(i) for i in root.inputs]
    if any(v is None for v in values):
        return None
    given = [_as_numpy(v, i.dtype) for v, i in zip(values, root.inputs, strict=True)]
    if root.op in (t.floordiv, t.mod) and not np.all(given[-1]):
        return None
    try:
        with np.errstate(all="ignore"):
            result = _NUMPY[root.op.name](*given)
    except ValueError:  # an integer to a negative power
        return None
    value = rounded(np.asarray(result).item(), root.dtype)
    return None if value is None else filled(root, value)


def _as_numpy(value: Any, dtype: str) -> Any:
    if dtype in FLOATS:
        return np.float64(value) if dtype == "f64" else np.float32(value)
    return np.bool_(value) if dtype == "bool" else np.int64(value)


@FOLDING.on(t.cast(x))
def cast_of_constant(root: Node, x: Node) -> Node | None:
    """cast(c) = the constant as the dtype holds it."""
    value = literal(x)
    held = None if value is None else rounded(value, x.dtype)
    cut = None if held is None else rounded(held, root.dtype)
    return None if cut is None else filled(root, cut)


@FOLDING.on(_patterns((1,)))
def unary_of_broadcast(root: Node, x: Node) -> Node | None:
    """f(broadcast(x)) = broadcast(f(x)): the work is done once an element."""
    if x.op is not t.broadcast:
        return None
    return t.broadcast(root.with_inputs(x.inputs), shape=root.shape)


@FOLDING.on(_patterns((2, 3)))
def implied_broadcast(root: Node) -> Node | None:
    """f(x, broadcast(y)) = f(x, y) where f spreads y by itself; leading axes of 1 go too."""
    for at, value in enumerate(root.inputs):
        thinner = _thinner(value)
        if thinner is None:
            continue
        new = root.with_inputs((*root.inputs[:at], thinner, *root.inputs[at + 1 :]))
        if equal_shapes(new.shape, root.shape):
            return new
    return None


def _thinner(value: Node) -> Node | None:
    """What a broadcast, or a reshape that only puts ones in front, is made from."""
    if value.op is t.broadcast:
        return value.inputs[0]
    if value.op is not t.reshape:
        return None
    source = value.inputs[0]
    more = len(value.shape) - len(source.shape)
    ones = more > 0 and all(d == 1 for d in value.shape[:more])
    return source if ones and equal_shapes(value.shape[more:], source.shape) else None


@FOLDING.on(_patterns((2, 3)))
def broadcast_of_scalars(root: Node) -> Node | None:
    """f(broadcast(a), broadcast(b)) = broadcast(f(a, b)) where a and b are scalars."""
    inner = [i.inputs[0] if i.op is t.broadcast else i for i in root.inputs]
    if not root.shape or any(i.shape for i in inner):
        return None
    return t.broadcast(root.with_inputs(tuple(inner)), shape=root.shape)


@FOLDING.on(t.matmul(x, y))
def matmul_implied_broadcast(root: Node, x: Node, y: Node) -> Node | None:
    """broadcast(x) @ y = x @ y where matmul spreads the leading axes by itself."""
    for at, value in enumerate(root.inputs):
        if value.op is not t.broadcast:
            continue
        try:
            new = t.matmul(*(value.inputs[0] if at == i else v for i, v in enumerate((x, y))))
        except IRError:
            continue
        if equal_shapes(new.shape, root.shape):
            return new
    return None


@FOLDING.on(t.matmul(x, y))
def outer_product_is_mul(root: Node, x: Node, y: Node) -> Node | None:
    """x[..., M, 1] @ y[..., 1, N] = x * y: one product each, nothing to add up."""
    return t.mul(x, y) if x.shape[-1] == 1 else None


@FOLDING.on(any_of(*(o(x) for o in (t.reshape, t.transpose, t.slice_, t.flip))))
def movement_of_constant(root: Node, x: Node) -> Node | None:
    """Moving one number about changes its shape alone."""
    value = literal(x)
    if value is None or not x.shape or x.op is t.reshape:
        return None
    return spread(t.scalar(value, x.dtype), root.shape) if x.op is t.broadcast else None
