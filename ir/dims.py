"""Dims: an int, or a sympy expression over named positive integers.

Plain ints take a fast path everywhere, because a sympy operation costs microseconds and most dims are ints.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import cast

import sympy

from .errors import IRError

Dim = int | sympy.Expr
Shape = tuple[Dim, ...]


@functools.cache
def dim(name: str) -> sympy.Symbol:
    """The named dim: one positive integer symbol for each name."""
    if not name.isidentifier():
        raise IRError(f"a dim's name is an identifier, not {name!r}")
    return sympy.Symbol(name, integer=True, positive=True)


def as_dim(value: object) -> Dim:
    """A dim in canonical form: an int wherever the expression is one."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, sympy.Integer):
        return int(value)
    if isinstance(value, sympy.Expr):
        return value
    raise IRError(f"a dim is an int or an expression over named dims, not {value!r}")


def product(dims: Iterable[Dim]) -> Dim:
    """The product of dims; 1 for none."""
    known, rest = 1, sympy.Integer(1)
    for d in dims:
        if isinstance(d, int):
            known *= d
        else:
            rest = rest * d
    return as_dim(known * rest) if rest != 1 else known


def equal(a: Dim, b: Dim) -> bool:
    """Whether two dims are equal for every value of their names."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return a == b or _expanded(a) == _expanded(b)


@functools.lru_cache(maxsize=65536)
def _expanded(d: Dim) -> Dim:
    return as_dim(sympy.expand(d)) if isinstance(d, sympy.Expr) else d


def equal_shapes(a: Shape, b: Shape) -> bool:
    """Whether two shapes have equal dims throughout."""
    return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))


@functools.lru_cache(maxsize=65536)
def exact_quotient(a: Dim, b: Dim) -> Dim | None:
    """a / b where b divides a for every value of the names, else None."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    quotient = sympy.cancel(sympy.sympify(a) / sympy.sympify(b))
    whole = quotient.is_integer and sympy.fraction(quotient)[1] == 1
    return as_dim(sympy.expand(quotient)) if whole else None


def names_in(d: Dim) -> frozenset[str]:
    """The names that a dim depends on."""
    if isinstance(d, int):
        return frozenset()
    return _names_in(d)


@functools.lru_cache(maxsize=65536)
def _names_in(d: sympy.Expr) -> frozenset[str]:
    return frozenset(str(s) for s in d.free_symbols)


def substitute(d: Dim, values: Mapping[str, Dim]) -> Dim:
    """The dim with names replaced by other dims."""
    if isinstance(d, int) or not names_in(d) & values.keys():
        return d
    replaced = d.subs({dim(name): value for name, value in values.items()}, simultaneous=True)
    return as_dim(sympy.expand(cast(sympy.Expr, replaced)))


def upper_bound(d: Dim, bounds: Mapping[str, tuple[int, int]]) -> int:
    """The largest value of a dim that grows with each of its names, given {name: (lowest, highest)}."""
    value = substitute(d, {name: bounds[name][1] for name in names_in(d)})
    if not isinstance(value, int):
        raise IRError(f"dim {d} has no highest value within {dict(bounds)}")
    return value


def dim_text(d: Dim) -> str:
    """The dim as text that parse_dim reads back."""
    return str(d)


@functools.lru_cache(maxsize=65536)
def parse_dim(text: str) -> Dim:
    """The dim that a text such as `2*T + 1` denotes."""
    try:
        return int(text)
    except ValueError:
        return _parse_expression(text)


def _parse_expression(text: str) -> Dim:
    names: dict[str, object] = {"floor": sympy.floor, "Max": sympy.Max, "Min": sympy.Min, "Mod": sympy.Mod}
    try:
        tokens = {t for t in _words(text) if t not in names}
        names.update({t: dim(t) for t in tokens})
        return as_dim(sympy.sympify(text, locals=names))
    except (sympy.SympifyError, SyntaxError, TypeError) as error:
        raise IRError(f"not a dim: {text!r} ({error})") from error


def _words(text: str) -> list[str]:
    cleaned = "".join(c if c.isalnum() or c == "_" else " " for c in text)
    return [w for w in cleaned.split() if w.isidentifier()]
