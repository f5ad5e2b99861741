"""Conditions on sizes that a trace took for granted, proved for every size that it is to serve.

The tracer refuses a range of lengths where it cannot prove a condition by algebra, even one as
plain as min(6, S) <= S. Deferred, its conditions stand in the program as assertions, and because a
length has finitely many values, each is simply tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram

from .sources import origin

Sizes = Mapping[str, tuple[int, int]]
MOST_TRIED = 1 << 13
FEW = (1, 2, 3, 5, 8, 13, 64)


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
    for values in product(*tried):
        at = {s: sympy.Integer(v) for s, v in zip(symbols, values, strict=True)}
        if condition.xreplace(at) is not sympy.true:
            return ", ".join(f"{s} = {v}" for s, v in at.items())
    return None


def _values(low: int, high: int, most: int) -> Iterator[int]:
    """All values of a range, or a few of them and its ends where they are too many."""
    if high - low < most:
        yield from range(low, high + 1)
    else:
        yield from sorted({low, high, *(v for v in FEW if low <= v <= high)})
