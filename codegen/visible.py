"""How many keys the queries of a sequence see, as formulas, exact for every length."""

from __future__ import annotations

from typing import NamedTuple

import sympy

from ..ir.dims import Dim, as_dim


class Mask(NamedTuple):
    """Which keys a query sees: see the op `attention`."""

    causal: bool
    window: int
    chunk: int


def pairs_doubled(mask: Mask, length: Dim, queries: Dim) -> Dim:
    """Twice the visible pairs of the last `queries` of `length` tokens and all before them."""
    if not mask.causal and not mask.window:
        return as_dim(2 * length * queries)
    before = _doubled_up_to(mask, length) - _doubled_up_to(mask, length - queries)
    if mask.causal:
        return as_dim(before)
    # Behind a query stand as many as before one that is as far from the other end.
    return as_dim(before + _doubled_up_to(mask, queries) - 2 * queries)


def _doubled_up_to(mask: Mask, count: Dim) -> Dim:
    """Twice the keys that the first `count` queries see: each itself and what is before it.

    Doubled, because the sum of 1 to n has a half in it.
    """
    if mask.chunk:
        whole = count // mask.chunk
        return whole * _rising(mask.chunk) + _rising(count - whole * mask.chunk)
    if mask.window:
        growing = _smaller(count, mask.window)
        return _rising(growing) + (count - growing) * 2 * mask.window
    return _rising(count)


def _rising(count: Dim) -> Dim:
    return count * (count + 1)


def span(mask: Mask, length: Dim, queries: Dim) -> Dim:
    """Keys that any of the last `queries` of `length` tokens sees."""
    if mask.chunk and mask.causal:
        first = length - queries
        return as_dim(length - first // mask.chunk * mask.chunk)
    if mask.window:
        return as_dim(_smaller(length, queries + mask.window - 1))
    return length


def _smaller(a: Dim, b: Dim) -> Dim:
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else sympy.Min(a, b)
