"""Sizes as the tracer writes them become dims: its symbols renamed, its functions as sympy's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat, cast

import sympy

from ..ir.dims import Dim, as_dim, dim


class OpenSizeError(Exception):
    """A size that only the data decides."""


class TracedSizes:
    """Translates the tracer's sizes; `names` maps its symbols to dims, `bounds` gives the (lowest,
    highest) value of each dim.
    """

    def __init__(self, names: Mapping[str, str], bounds: Mapping[str, tuple[int, int]]) -> None:
        self._symbols = {symbol: dim(name) for symbol, name in names.items()}
        self._bounds: dict[Any, tuple[int, int]] = {dim(n): b for n, b in bounds.items()}

    def dim(self, expr: Any) -> Dim:
        """The size as a dim; raises OpenSizeError where it has a symbol that is no dim."""
        if isinstance(expr, (int, float)):
            return expr  # type: ignore[return-value]
        if expr.is_Integer:
            return int(expr)
        if expr.is_Float:
            return float(expr)  # type: ignore[return-value]
        if expr.is_Symbol:
            if str(expr) not in self._symbols:
                raise OpenSizeError(f"a size depends on the data ({expr})")
            return self._symbols[str(expr)]
        parts = [sympy.sympify(self.dim(a)) for a in expr.args]
        name = type(expr).__name__
        if name in ("Max", "Min"):
            made = self._extreme(parts, largest=name == "Max")
        else:
            made = _FUNCTIONS.get(name, expr.func)(*parts)
        return float(made) if made.is_Float else as_dim(made)  # type: ignore[return-value]

    def _extreme(self, parts: list[sympy.Expr], *, largest: bool) -> sympy.Expr:
        """The largest or smallest part, without those that never are, within the bounds."""
        left: list[sympy.Expr] = []
        for at, part in enumerate(parts):
            others = [*left, *parts[at + 1 :]]
            beaten = (self._least(o - part if largest else part - o) for o in others)
            if not any(least is not None and least >= 0 for least in beaten):
                left.append(part)
        return (sympy.Max if largest else sympy.Min)(*left)

    def _least(self, expr: sympy.Expr) -> int | None:
        """The least value of a sum of dims with whole factors; None of anything else."""
        terms = sympy.expand(expr).as_coefficients_dict()
        least = 0
        for term, factor in terms.items():
            low, high = (1, 1) if term == 1 else self._bounds.get(term, (None, None))
            if low is None or high is None or not factor.is_Integer:
                return None
            least += int(factor) * (low if factor > 0 else high)
        return least


def _floor_division(a: sympy.Expr, b: sympy.Expr) -> sympy.Expr:
    return sympy.floor(sympy.cancel(a / b) if b.free_symbols else a / b)


def _rest(a: sympy.Expr, b: sympy.Expr) -> sympy.Expr:
    """What is left of a sum of whole dims by a number, as a difference: x + (-x mod b) is then the
    multiple of b that it is.
    """
    terms = sympy.expand(a).as_coefficients_dict()
    whole = all(f.is_Integer and t.is_integer for t, f in terms.items())
    if not whole or not b.is_Integer or not b > 0:
        return sympy.Mod(a, b)
    rests = [(t, int(f) % int(b)) for t, f in terms.items()]
    near = [(t, f if 2 * f <= b else f - int(b)) for t, f in rests]
    left = sum((t * f for t, f in near), sympy.Integer(0))
    if all(f < 0 for t, f in near if t != 1):
        return left + b * sympy.floor((b - 1 - left) / b)
    return left - b * sympy.floor(left / b)


def _whole(expr: sympy.Expr) -> sympy.Expr:
    """An expression whose whole numbers, where they are floats, are integers."""
    values = ((f, float(cast("SupportsFloat", f))) for f in expr.atoms(sympy.Float))
    return expr.xreplace({f: sympy.Integer(int(v)) for f, v in values if v.is_integer()})


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "FloorDiv": _floor_division,
    "CleanDiv": _floor_division,
    "PythonMod": _rest,
    "Mod": _rest,
    "ModularIndexing": lambda a, b, c: sympy.Mod(sympy.floor(a / b), c),
    "ToFloat": lambda a: a,
    "TruncToInt": lambda a: a,
    "IntTrueDiv": lambda a, b: a / b,
    "FloatTrueDiv": lambda a, b: a / b,
    "CeilToInt": lambda a: sympy.ceiling(_whole(a)),
    "FloorToInt": lambda a: sympy.floor(_whole(a)),
    "PowByNatural": sympy.Pow,
    "FloatPow": sympy.Pow,
    **{f"OpaqueUnaryFn_{name}": getattr(sympy, name) for name in ("sqrt", "exp", "log")},
}
