"""Dims as a plan writes them: nested tuples (operator, a, b) that the runtime evaluates without
sympy.
"""

from __future__ import annotations

from functools import reduce

import sympy

from .dims import Dim
from .errors import IRError
from .plan import Expr

_MANY = {sympy.Add: "+", sympy.Mul: "*", sympy.Max: "max", sympy.Min: "min"}


def expression(d: Dim) -> Expr:
    """The dim as a plan's expression: sums, products, floored quotients, largest and smallest of
    natural numbers.
    """
    if isinstance(d, int | sympy.Integer):
        return _natural(int(d), d)
    if isinstance(d, sympy.Symbol):
        return str(d)
    if isinstance(d, sympy.floor):
        above, below = sympy.fraction(sympy.together(d.args[0]))
        return ("//", expression(above), expression(below))
    operator = next((o for kind, o in _MANY.items() if isinstance(d, kind)), None)
    if operator is None:
        raise IRError(
            f"a plan has no dim such as {d}; wanted: +, *, floor, Max and Min of natural numbers"
        )
    parts = [expression(a) for a in sorted(d.args, key=str)]
    return reduce(lambda a, b: (operator, a, b), parts)


def _natural(value: int, whole: Dim) -> int:
    if value < 0:
        raise IRError(f"dim {whole} subtracts: a plan's dims are made of natural numbers")
    return value
