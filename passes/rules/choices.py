"""Which few of many experts count for a row: shares p[..., E] that are zero but where an index
says, and the same written as sums over choices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ...ir.dims import equal, equal_shapes
from ...ir.node import Node
from ...ir.ops import tensor as t
from .values import literal

# What each op makes of a number that stands everywhere but at the chosen places.
_OF_NUMBER: dict[str, Callable[[float], float]] = {
    "sigmoid": lambda v: 1 / (1 + math.exp(-v)) if v > -700 else 0.0,
    "exp": lambda v: math.exp(v) if v > -700 else 0.0,
    "relu": lambda v: max(v, 0.0),
    "cast": lambda v: v,
}


@dataclass(frozen=True)
class Choice:
    """The experts of a row that count, and what they count: values[..., K] at index[..., K]."""

    values: Node
    index: Node


def choice_of(shares: Node) -> Choice | None:
    """The choice behind shares p[..., E]; None where others than an index's may be other than
    zero.
    """
    found = _rest(shares)
    if found is None or found[1] != 0:
        return None
    index = found[0]
    return Choice(t.take_along(shares, index, axis=len(shares.shape) - 1), index)


def _rest(p: Node) -> tuple[Node, float] | None:
    """(index[..., K], the number that p[..., E] is at all other places)."""
    last = len(p.shape) - 1
    if p.op is t.scatter and p["axis"] == last and p["reduce"] == "set":
        base, index, _ = p.inputs
        rest = literal(base)
        # Places that differ, as those of a topk do: a place named twice has one value.
        distinct = index.op.name == "item" and index["index"] == 1
        if rest is None or not distinct or index.inputs[0].op is not t.topk:
            return None
        return index, float(rest)
    if p.op is t.softmax and p["axis"] == last:
        found = _rest(p.inputs[0])
        return (found[0], 0.0) if found is not None and found[1] == -math.inf else None
    if p.op.name in _OF_NUMBER:
        found = _rest(p.inputs[0])
        return None if found is None else (found[0], _OF_NUMBER[p.op.name](found[1]))
    if p.op in (t.mul, t.div):
        return _scaled_rest(p)
    return None


def _scaled_rest(p: Node) -> tuple[Node, float] | None:
    """Zeros stay zeros when rows are scaled: by a number, or by one of each row."""
    pairs = (p.inputs, p.inputs[::-1]) if p.op is t.mul else (p.inputs,)
    for inner, by in pairs:
        one = literal(by) is not None or by.shape[-1:] == (1,)
        found = _rest(inner) if one and equal_shapes(inner.shape, p.shape) else None
        if found is not None and found[1] == 0:
            return found
    return None


def share_of_one(share: Node) -> tuple[Choice, int, int] | None:
    """(choice, expert, experts) where a node [..., 1] is one expert's share; 0 experts where only
    the choice's own values tell.
    """
    while share.op is t.reshape and share.shape[-1:] == (1,) and len(share.shape) > 1:
        share = share.inputs[0]
    last = len(share.shape) - 1
    if share.op is t.slice_ and share["axis"] == last and share.shape[last] == 1:
        source, expert = share.inputs[0], share["start"]
        while source.op is t.reshape and equal(source.shape[-1], source.inputs[0].shape[-1]):
            source = source.inputs[0]
        choice = choice_of(source)
        count = source.shape[-1]
        if choice is None or not isinstance(expert, int) or not isinstance(count, int):
            return None
        return choice, expert, count
    return _summed_share(share) if share.op is t.reduce_sum else None


def _summed_share(share: Node) -> tuple[Choice, int, int] | None:
    """sum_k values[..., k] where index[..., k] is an expert."""
    masked = share.inputs[0]
    if share["axes"] != (len(masked.shape) - 1,):
        return None
    if masked.op is t.where and literal(masked.inputs[2]) == 0:
        condition, values = masked.inputs[:2]
        return _where_equal(condition, values)
    if masked.op is t.mul:
        for values, condition in (masked.inputs, masked.inputs[::-1]):
            inner = condition.inputs[0] if condition.op is t.cast else condition
            found = _where_equal(inner, values) if inner.dtype == "bool" else None
            if found is not None:
                return found
    return None


def _where_equal(condition: Node, values: Node) -> tuple[Choice, int, int] | None:
    if condition.op is not t.eq or not equal_shapes(condition.shape, values.shape):
        return None
    for index, number in (condition.inputs, condition.inputs[::-1]):
        expert = literal(number)
        whole = index.dtype in ("i64", "i32") and equal_shapes(index.shape, values.shape)
        if expert is not None and whole:
            return Choice(values, index), int(expert), 0
    return None
