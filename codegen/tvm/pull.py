"""Pull evaluation: the value of any node at an index, as an expression over its kernel's
buffers.

Elementwise ops combine the values of their inputs; movement ops are maps of the index; take is
a load whose index is itself a value. What has loops of its own (reductions, contractions, ...)
must have been given a source: a buffer that holds it by the time it is read.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import sympy
import tvm
from tvm import tirx

from ...ir.dims import Dim, Shape, equal, product
from ...ir.node import Node
from ..errors import CodegenError
from ..reshaping import matching_groups
from . import values
from .elementwise import EMIT, elementwise
from .values import Expr, bind, bind_opaque, cast, const, i64

Point = tuple[Expr, ...]
Source = Callable[[Point], Expr]

ZERO = i64(0)


@dataclass
class Dims:
    """Symbolic dims as expressions of a kernel's shape variables."""

    variables: dict[str, Expr] = field(default_factory=dict[str, Expr])

    def expr(self, d: Dim) -> Expr:
        """A dim as an int64 expression."""
        if isinstance(d, int):
            return i64(d)
        if isinstance(d, sympy.Symbol):
            return self._variable(str(d))
        return self._compound(d)

    def _variable(self, name: str) -> Expr:
        if name not in self.variables:
            known = ", ".join(self.variables) or "none"
            raise CodegenError(
                f"dim {name} is in no shape of the kernel's arguments; known: {known}"
            )
        return self.variables[name]

    def _compound(self, d: sympy.Expr) -> Expr:
        if d.is_Integer:
            return i64(int(d))
        parts = [self.expr(a) for a in d.args if not a.is_Rational or a.is_Integer]
        fold = {
            "Add": lambda a, b: a + b,
            "Mul": lambda a, b: a * b,
            "Max": tirx.max,
            "Min": tirx.min,
        }
        name = type(d).__name__
        if name == "Mul":
            return self._quotient(d)
        if name == "floor":
            return self.expr(d.args[0])
        if name == "Mod":
            return tirx.floormod(parts[0], parts[1])
        if name == "Pow" and d.args[1].is_Integer and int(d.args[1]) > 0:
            return (
                self.expr(d.args[0])
                if int(d.args[1]) == 1
                else self.expr(d.args[0]) * self.expr(d.args[0] ** (int(d.args[1]) - 1))
            )
        if name == "Add" and any(a.as_numer_denom()[1] != 1 for a in d.args):
            return self._quotient(d)
        if name not in fold:
            raise CodegenError(f"dim {d}: no rule for {name}")
        total = parts[0]
        for p in parts[1:]:
            total = fold[name](total, p)
        return total

    def _quotient(self, d: sympy.Expr) -> Expr:
        top, bottom = sympy.together(d).as_numer_denom()
        if bottom != 1:
            return tirx.floordiv(self.expr(_dim(top)), self.expr(_dim(bottom)))
        if type(d).__name__ != "Mul":
            return self.expr(_dim(top))
        total = self.expr(_dim(d.args[0]))
        for a in d.args[1:]:
            total = total * self.expr(_dim(a))
        return total


def _dim(e: sympy.Basic) -> Dim:
    return int(e) if isinstance(e, sympy.Integer) else typing.cast("Dim", e)


@dataclass
class Pull:
    """One place in a kernel where values are wanted: its sources, and what has been computed
    there already.

    `facts` knows the ranges of the loop variables; `cuts` collects, for a probing run, where
    along `cut_variable` a joined or padded axis changes from one piece to the next.
    """

    dims: Dims
    sources: Mapping[Node, Source]
    facts: tvm.sym.Analyzer = field(default_factory=tvm.sym.Analyzer)
    cut_variable: Expr | None = None
    cuts: set[int] = field(default_factory=set[int])
    _done: dict[tuple[object, ...], Expr] = field(default_factory=dict)
    _kept: list[Point] = field(default_factory=list)

    def value(self, node: Node, at: Sequence[Expr]) -> Expr:
        """The node's element at an index."""
        point = tuple(at)
        key = (node, *(id(i) for i in point))
        if key not in self._done:
            self._kept.append(point)
            self._done[key] = self._compute(node, point)
        return self._done[key]

    def _compute(self, node: Node, at: Point) -> Expr:
        if node in self.sources:
            value = self.sources[node](at)
            return value if isinstance(value, tirx.IntImm | tirx.FloatImm) else bind_opaque(value)
        if node.op.name in _RULES:
            return _RULES[node.op.name](self, node, at)
        if node.op.name in EMIT or node.op.name == "cast":
            operands = [self.value(x, self.broadcast(x, node.shape, at)) for x in node.inputs]
            value = elementwise(node, operands)
            simple = isinstance(value, tirx.IntImm | tirx.FloatImm | tirx.Var)
            return value if simple else bind_opaque(value)
        raise CodegenError(f"{node.op.name} : {node.type} has no value by index in a kernel")

    def broadcast(self, x: Node, shape: Shape, at: Point) -> Point:
        """The index of x where the result of a broadcast is at `at`."""
        skip = len(shape) - len(x.shape)
        pairs = zip(x.shape, shape[skip:], at[skip:], strict=True)
        return tuple(ZERO if d == 1 and not equal(s, 1) else i for d, s, i in pairs)

    def proves(self, claim: Expr) -> bool:
        """Whether a condition holds for every value of the loop variables."""
        return bool(self.facts.can_prove(claim))

    def simplify(self, e: Expr) -> Expr:
        """An index in a simpler form, where one is known."""
        return self.facts.simplify(e)

    def cut(self, e: Expr, boundary: Expr) -> None:
        """Note that the piece changes where e reaches the boundary."""
        if self.cut_variable is None:
            return
        difference = self.facts.simplify(boundary - e + self.cut_variable)
        if isinstance(difference, tirx.IntImm):
            self.cuts.add(int(difference.value))


# -- rules: op -> (pull, node, index) -> value


def _constant(pull: Pull, node: Node, at: Point) -> Expr:
    return const(node["value"], values.COMPUTED[node.dtype])


def _iota(pull: Pull, node: Node, at: Point) -> Expr:
    return cast(at[0], values.COMPUTED[node.dtype])


def _dim_value(pull: Pull, node: Node, at: Point) -> Expr:
    return cast(pull.dims.expr(node["dim"]), values.COMPUTED[node.dtype])


def _reshape(pull: Pull, node: Node, at: Point) -> Expr:
    x = node.inputs[0]
    return pull.value(x, reshaped(pull, x.shape, node.shape, at))


def reshaped(pull: Pull, source: Shape, shape: Shape, at: Point) -> Point:
    """The index into `source` of the element that a row-major reshape to `shape` puts at `at`;
    groups of axes of equal size are taken apart separately, so that a symbolic leading dim
    needs no division.
    """
    result: list[Expr] = [ZERO] * len(source)
    for left, right in matching_groups(source, shape):
        flat = at[right[0]] if right else ZERO
        for axis in right[1:]:
            flat = flat * pull.dims.expr(shape[axis]) + at[axis]
        if len(left) > 1 and len(right) > 1:
            flat = pull.simplify(flat)
        for place, axis in enumerate(left):
            below = product(source[i] for i in left[place + 1 :])
            part = flat if below == 1 else tirx.floordiv(flat, pull.dims.expr(below))
            part = part if place == 0 else tirx.floormod(part, pull.dims.expr(source[axis]))
            result[axis] = part if len(left) == 1 else pull.simplify(part)
    return tuple(result)


def _transpose(pull: Pull, node: Node, at: Point) -> Expr:
    source: list[Expr] = [ZERO] * len(at)
    for i, axis in enumerate(node["permutation"]):
        source[axis] = at[i]
    return pull.value(node.inputs[0], source)


def _broadcast(pull: Pull, node: Node, at: Point) -> Expr:
    return pull.value(node.inputs[0], pull.broadcast(node.inputs[0], node.shape, at))


def _replace(at: Point, axis: int, e: Expr) -> Point:
    return (*at[:axis], e, *at[axis + 1 :])


def _slice(pull: Pull, node: Node, at: Point) -> Expr:
    axis, start = node["axis"], node["start"]
    e = at[axis] if node["step"] == 1 else at[axis] * i64(node["step"])
    if start != 0:
        e = pull.simplify(e + pull.dims.expr(start))
    return pull.value(node.inputs[0], _replace(at, axis, e))


def _concat(pull: Pull, node: Node, at: Point) -> Expr:
    """Pieces are chosen when the code is generated where the loop's range allows it, else by a
    select over clamped loads.
    """
    axis = node["axis"]
    starts: list[Dim] = [0]
    for x in node.inputs:
        starts.append(starts[-1] + x.shape[axis])
    return _piece(pull, node, at, starts, 0, len(node.inputs))


def _piece(pull: Pull, node: Node, at: Point, starts: list[Dim], low: int, high: int) -> Expr:
    axis = node["axis"]
    if high - low == 1:
        x = node.inputs[low]
        e = pull.simplify(at[axis] - pull.dims.expr(starts[low]))
        return pull.value(x, _replace(at, axis, _clamped(pull, e, x.shape[axis])))
    middle = (low + high) // 2
    boundary = pull.dims.expr(starts[middle])
    pull.cut(at[axis], boundary)
    before = tirx.LT(at[axis], boundary)
    if pull.proves(before):
        return _piece(pull, node, at, starts, low, middle)
    if pull.proves(tirx.GE(at[axis], boundary)):
        return _piece(pull, node, at, starts, middle, high)
    left = _piece(pull, node, at, starts, low, middle)
    return bind(tirx.Select(before, left, _piece(pull, node, at, starts, middle, high)))


def _clamped(pull: Pull, e: Expr, size: Dim) -> Expr:
    """An index held inside its axis, where it is not known to be there."""
    top = pull.dims.expr(size) - i64(1)
    if not pull.proves(tirx.GE(e, ZERO)):
        e = tirx.max(e, ZERO)
    return e if pull.proves(tirx.LE(e, top)) else tirx.min(e, top)


def _pad(pull: Pull, node: Node, at: Point) -> Expr:
    x = node.inputs[0]
    fill = const(node["value"], values.COMPUTED[x.dtype])
    inside: list[Expr] = []
    source: list[Expr] = []
    for e, before, after, size in zip(at, node["before"], node["after"], x.shape, strict=True):
        shifted = pull.simplify(e - pull.dims.expr(before)) if before != 0 else e
        end = pull.dims.expr(before + size)
        for here, outside, boundary in (
            (before != 0, tirx.LT(e, pull.dims.expr(before)), pull.dims.expr(before)),
            (after != 0, tirx.GE(e, end), end),
        ):
            if not here:
                continue
            pull.cut(e, boundary)
            if pull.proves(outside):
                return fill
            if not pull.proves(tirx.Not(outside)):
                inside.append(tirx.Not(outside))
        source.append(_clamped(pull, shifted, size) if inside else shifted)
    value = pull.value(x, source)
    for condition in inside:
        value = tirx.Select(condition, value, fill)
    return bind(value) if inside else value


def _flip(pull: Pull, node: Node, at: Point) -> Expr:
    source = list(at)
    for axis in node["axes"]:
        source[axis] = pull.dims.expr(node.shape[axis]) - i64(1) - at[axis]
    return pull.value(node.inputs[0], source)


def _take(pull: Pull, node: Node, at: Point) -> Expr:
    x, index = node.inputs
    axis, rank = node["axis"], len(index.shape)
    row = i64(pull.value(index, at[axis : axis + rank]))
    row = bind(row) if not isinstance(row, tirx.IntImm | tirx.Var) else row
    return pull.value(x, (*at[:axis], row, *at[axis + rank :]))


def _take_along(pull: Pull, node: Node, at: Point) -> Expr:
    x, index = node.inputs
    row = bind(i64(pull.value(index, at)))
    return pull.value(x, _replace(at, node["axis"], row))


_RULES: Mapping[str, Callable[[Pull, Node, Point], Expr]] = {
    "constant": _constant,
    "iota": _iota,
    "dim_value": _dim_value,
    "reshape": _reshape,
    "transpose": _transpose,
    "broadcast": _broadcast,
    "slice": _slice,
    "concat": _concat,
    "pad": _pad,
    "flip": _flip,
    "take": _take,
    "take_along": _take_along,
}

BY_INDEX = frozenset(_RULES) | frozenset(EMIT) | {"cast"}
"""The ops whose value at an index is an expression of their inputs' values: they need no loop of
their own.
"""
