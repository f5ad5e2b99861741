"""The text of a Triton function under construction: lines in scopes, values by name, indices."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import sympy

from ...ir.dims import Dim, as_dim, names_in

Axes = frozenset[str]
SCALAR: Axes = frozenset()


@dataclass(frozen=True)
class Index:
    """A place on an axis: the value `base` ("" for none) plus a whole number.

    `axes` names the axes of the block that it is, none for a scalar; `plain`: its lanes are places
    of their own, none the same as another.
    """

    base: str
    offset: int = 0
    axes: Axes = SCALAR
    plain: bool = True

    @property
    def text(self) -> str:
        """The index as an expression."""
        if not self.base:
            return str(self.offset)
        if not self.offset:
            return self.base
        return f"({self.base} {'+' if self.offset > 0 else '-'} {abs(self.offset)})"

    def plus(self, offset: int) -> Index:
        """The place so many further."""
        return replace(self, offset=self.offset + offset)

    @property
    def is_number(self) -> bool:
        """Whether the place is known when the code is made."""
        return not self.base


ZERO = Index("")
Point = tuple[Index, ...]


class Test(NamedTuple):
    """A condition by name, and the axes of the block that it is; a part of another one goes
    without saying beside it.
    """

    name: str
    axes: Axes
    part_of: str = ""


Mask = tuple[Test, ...]
"""Conditions that must all hold; none for what is always wanted."""


def axes_of(at: Sequence[Index]) -> Axes:
    """The axes of what has a value at these indices."""
    return SCALAR.union(*(i.axes for i in at))


def narrowed(mask: Mask, axes: Axes) -> Mask:
    """The conditions on these axes alone: the others are nothing to what lies along these."""
    return tuple(dict.fromkeys(t for t in mask if t.axes <= axes))


@dataclass
class Writer:
    """Lines of a function's body. A name given inside a loop is forgotten behind it.

    `dims` are the names of the dims that the text reads, `arguments` the pointers, in the order of
    their first use.
    """

    lines: list[str] = field(default_factory=list[str])
    dims: dict[str, None] = field(default_factory=dict[str, None])
    arguments: dict[str, None] = field(default_factory=dict[str, None])
    _scopes: list[dict[Hashable, str]] = field(default_factory=lambda: [{}])
    _depth: int = 1
    _count: int = 0

    def line(self, text: str) -> None:
        """A statement."""
        self.lines.append("    " * self._depth + text)

    def name(self, prefix: str = "v") -> str:
        """A name that is not taken."""
        self._count += 1
        return f"{prefix}{self._count}"

    def value(self, text: str, key: Hashable = None, prefix: str = "v") -> str:
        """The name of an expression's value; the same one for an equal key in reach."""
        key = text if key is None else key
        found = self.known(key)
        if found is not None:
            return found
        name = self.name(prefix)
        self.line(f"{name} = {text}")
        self.remember(key, name)
        return name

    def known(self, key: Hashable) -> str | None:
        """The name that a key was given, if it is in reach."""
        return next((s[key] for s in reversed(self._scopes) if key in s), None)

    def remember(self, key: Hashable, name: str) -> None:
        """Give a name to a key, for as long as this scope lasts."""
        self._scopes[-1][key] = name

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """The lines under a head such as `for k in range(n):`."""
        self.line(head)
        self._depth += 1
        try:
            with self.scope():
                yield
        finally:
            self._depth -= 1

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Lines whose values are not reused behind them."""
        self._scopes.append({})
        try:
            yield
        finally:
            self._scopes.pop()

    def pointer(self, name: str) -> str:
        """An argument that is a pointer, noted as used."""
        self.arguments[name] = None
        return name

    def dim(self, d: Dim) -> str:
        """A dim as an expression; the names in it become arguments."""
        for name in sorted(names_in(d)):
            self.dims[name] = None
        return dim_text(d)


def dim_text(d: Dim) -> str:
    """A dim as a Triton expression over its names, of whole numbers that are not negative."""
    if isinstance(d, int | sympy.Integer):
        return str(int(d))
    if isinstance(d, sympy.Symbol):
        return str(d)
    if isinstance(d, sympy.floor):
        above, below = sympy.fraction(sympy.together(d.args[0]))
        return f"({dim_text(above)} // {dim_text(below)})"
    joined = {sympy.Add: " + ", sympy.Mul: " * "}.get(type(d))
    parts = [dim_text(as_dim(a)) for a in d.args]
    if joined is not None:
        return f"({joined.join(parts)})"
    function = {sympy.Max: "tl.maximum", sympy.Min: "tl.minimum"}[type(d)]
    text = parts[0]
    for part in parts[1:]:
        text = f"{function}({text}, {part})"
    return text


def times(index: Index, factor: Dim, writer: Writer) -> Index:
    """The index times a dim."""
    if factor == 1 or index == ZERO:
        return index
    if index.is_number and isinstance(factor, int):
        return Index("", index.offset * factor)
    name = writer.value(f"{index.text} * {writer.dim(factor)}", prefix="i")
    return replace(index, base=name, offset=0)


def total(parts: Sequence[Index], writer: Writer) -> Index:
    """The sum of indices."""
    named = [p for p in parts if p.base]
    offset = sum(p.offset for p in parts)
    if not named:
        return Index("", offset)
    if len(named) == 1:
        return replace(named[0], offset=offset)
    # One lane to a place remains so beside scalars; two blocks together may be anything.
    plain = sum(bool(p.axes) for p in named) < 2 and all(p.plain for p in named)
    name = writer.value(" + ".join(p.base for p in named), prefix="i")
    return Index(name, offset, axes_of(named), plain)


def divided(index: Index, by: Dim, writer: Writer, *, rest: bool) -> Index:
    """The index // by, or index % by."""
    if by == 1:
        return ZERO if rest else index
    if index.is_number and isinstance(by, int):
        return Index("", index.offset % by if rest else index.offset // by)
    sign = "%" if rest else "//"
    name = writer.value(f"{index.text} {sign} {writer.dim(by)}", prefix="i")
    return Index(name, 0, index.axes, not index.axes)


def joined(mask: Mask) -> str:
    """The conjunction as an expression, without what is part of another one; "" for none."""
    names = {t.name for t in mask}
    return " & ".join(dict.fromkeys(t.name for t in mask if t.part_of not in names))
