"""Conditions on sizes that a trace took for granted, proved for every size that it is to serve.

The tracer refuses a range of lengths where it cannot prove a condition by algebra, even one as
plain as min(6, S) <= S or 4 (S // 4) <= S. Because a length has finitely many values, each is
simply tried: while the tracer asks, where the condition is of a least or greatest of one size and
others, of what is left of it by division, or of rounded quotients, as `arange` has them; or
afterwards, where conditions were deferred and stand in the program as assertions. Where a size
becomes a number all the same, it is noted where.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, wraps
from itertools import product
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy.functions import (
    CeilToInt,
    FloatTrueDiv,
    FloorDiv,
    FloorToInt,
    IntTrueDiv,
    Max,
    Min,
    Mod,
    PythonMod,
)

from .refusals import SIZES
from .sources import calling_line, origin
from .whole_numbers import in_whole_numbers

Sizes = Mapping[str, tuple[int, int]]
MOST_TRIED = 1 << 13
FEW = (1, 2, 3, 5, 8, 13, 64)
BEYOND_ALGEBRA = (
    *(Min, Max, FloorDiv, Mod, PythonMod),
    *(CeilToInt, FloorToInt, IntTrueDiv, FloatTrueDiv),
)


@contextmanager
def tried_conditions() -> Iterator[None]:
    """Let the tracer know of a condition that holds at each value of its one size, or at none."""
    tracer: Any = ShapeEnv
    known = tracer._maybe_evaluate_static

    @wraps(known)
    def evaluated(env: Any, condition: Any, **options: Any) -> Any:
        found = known(env, condition, **options)
        return _decided(env, condition) if found is None and not any(options.values()) else found

    tracer._maybe_evaluate_static = evaluated
    try:
        yield
    finally:
        tracer._maybe_evaluate_static = known


def _decided(env: Any, condition: Any) -> sympy.Basic | None:
    symbols = list(condition.free_symbols)
    if len(symbols) != 1 or not condition.has(*BEYOND_ALGEBRA):
        return None
    if env.is_unbacked_symint(symbols[0]):
        return None  # a number that the data decides, and that may be 0
    bounds = env.var_to_range.get(symbols[0])
    if bounds is None or not isinstance(condition, sympy.logic.boolalg.Boolean):
        return None
    most = int(bounds.upper) if bounds.upper < MOST_TRIED else 0
    return _at_each(condition, symbols[0], most)


@lru_cache(maxsize=1024)
def _at_each(condition: sympy.Basic, symbol: sympy.Symbol, most: int) -> sympy.Basic | None:
    """What a condition is at each size from 1 to the most; None where that differs, or is not
    known.
    """
    value_at = trial(condition, (symbol,))
    first: bool | None = None
    for size in range(1, most + 1):
        try:
            value = value_at(size)
        except ZeroDivisionError:
            return None  # a rest by nothing: no condition at this size
        if value is None or first not in (None, value):
            return None
        first = value
    return None if first is None else sympy.true if first else sympy.false


def trial(condition: sympy.Basic, symbols: Sequence[sympy.Symbol]) -> Callable[..., bool | None]:
    """What a condition is at sizes, one for each symbol; None where that is not known."""
    plain = in_whole_numbers(condition, symbols)

    def by_algebra(*sizes: int) -> bool | None:
        at = {s: sympy.Integer(size) for s, size in zip(symbols, sizes, strict=True)}
        value = condition.xreplace(at)
        return bool(value) if value in (sympy.true, sympy.false) else None

    return plain or by_algebra


class BecameNumberError(BaseException):
    """A size that is to be any became a number: no Exception, which tracers catch and log."""


@contextmanager
def noted_numbers(*, refused: str = "") -> Iterator[list[str]]:
    """Where in the model's source sizes became numbers while it was traced, in order: `file.py:12,
    where s3 becomes 19`, the size by the tracer's symbol, or as what it is of token ids. Where it
    is a size of the argument `refused`, that ends the trace: loops over the tokens go on for long,
    and their program would be refused anyway.
    """
    tracer: Any = ShapeEnv
    known, places = tracer._set_replacement, list[str]()

    @wraps(known)
    def replaced(env: Any, symbol: Any, value: Any, *rest: Any) -> None:
        if isinstance(value, sympy.Integer) and symbol not in env.replacements:
            size = _named(env, symbol, refused)
            places.append(f"{calling_line()}, where {size} becomes {value}")
            if refused and axis_of(env, symbol, refused) is not None:
                raise BecameNumberError(str(value))
        known(env, symbol, value, *rest)

    tracer._set_replacement = replaced
    try:
        yield places
    finally:
        tracer._set_replacement = known


@contextmanager
def noted_conditions() -> Iterator[list[tuple[sympy.Basic, str]]]:
    """The conditions on sizes that a trace takes for granted, each with the model's line."""
    tracer: Any = ShapeEnv
    known, found = tracer._maybe_guard_rel, list[tuple[sympy.Basic, str]]()

    @wraps(known)
    def guarded(env: Any, condition: Any) -> None:
        found.append((condition, calling_line()))
        known(env, condition)

    tracer._maybe_guard_rel = guarded
    try:
        yield found
    finally:
        tracer._maybe_guard_rel = known


def first_broken(
    conditions: Iterable[tuple[sympy.Basic, str]], symbol: str, size: int, name: str
) -> str:
    """The first of the conditions on one size alone that does not hold at a number, the size by a
    name, with its model line; "" where all hold.
    """
    for condition, place in conditions:
        symbols = list(condition.free_symbols)
        if [str(s) for s in symbols] != [symbol]:
            continue
        if condition.xreplace({symbols[0]: sympy.Integer(size)}) is sympy.false:
            text = condition.xreplace({symbols[0]: sympy.Symbol(name)})
            return f"{text}, {place}" if place else str(text)
    return ""


def _named(tracer: Any, symbol: Any, argument: str) -> str:
    """What a size is of, where it is one of token ids: else the tracer's symbol."""
    axis = axis_of(tracer, symbol, argument)
    return str(symbol) if axis is None else [*SIZES.values()][axis]


def axis_of(tracer: Any, symbol: Any, argument: str) -> int | None:
    """The axis of an argument of the traced module that a symbol is the size of, if it is one."""
    sources = [str(source.name) for source in tracer.var_to_sources.get(symbol, ())]
    found = (re.fullmatch(rf"L\['{argument}'\]\.size\(\)\[(\d)\]", name) for name in sources)
    return next((int(each[1]) for each in found if each), None)


def broken_condition(program: ExportedProgram, sizes: Sizes) -> str | None:
    """The first asserted condition that does not hold at some of the sizes, with one at which it
    fails and its model line; None where all hold. `sizes` are (lowest, highest) by the tracer's
    symbol.

    A symbol with more than MOST_TRIED values, as a batch beside a length, is tried at a few.
    """
    asserted: dict[sympy.Basic, Any] = {}
    for node in program.graph.nodes:
        if node.target is torch.ops.aten._assert_scalar.default:
            value = getattr(node.args[0], "meta", {}).get("val", node.args[0])
            if isinstance(value, torch.SymBool):
                asserted.setdefault(value.node.expr, node)
    for condition, node in asserted.items():
        found = _counterexample(condition, sizes)
        if found is not None:
            place = origin(node.meta, "model.")
            return f"{condition} does not hold at {found}" + (f", {place}" if place else "")
    return None


def _counterexample(condition: sympy.Basic, sizes: Sizes) -> str | None:
    """Sizes at which a condition is not true, as text."""
    unknown = [str(s) for s in condition.free_symbols if str(s) not in sizes]
    if unknown:
        return f"any size: {', '.join(sorted(unknown))} depends on the data"
    symbols = sorted(condition.free_symbols, key=lambda s: sizes[str(s)][1])
    left, tried = MOST_TRIED, list[list[int]]()
    for symbol in symbols:
        tried.append(list(_values(*sizes[str(symbol)], most=left)))
        left = max(len(FEW), left // len(tried[-1]))
    holds = trial(condition, symbols)
    for values in product(*tried):
        if not holds(*values):
            return ", ".join(f"{s} = {v}" for s, v in zip(symbols, values, strict=True))
    return None


def _values(low: int, high: int, most: int) -> Iterator[int]:
    """All values of a range, or a few of them and its ends where they are too many."""
    if high - low < most:
        yield from range(low, high + 1)
    else:
        yield from sorted({low, high, *(v for v in FEW if low <= v <= high)})
