"""Tables over pairs of tokens that are one number up to a diagonal and another above it.

A model that fills its causal mask in a loop, or makes it with numpy, has it as numbers of one
length. What such numbers are at two lengths says what they are at any, where they are a step: a
mask whose window is wider than both is told from one by a run at a greater length.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ir.dims import names_in
from ..ir.node import Node
from ..ir.ops import tensor as t
from ..ir.types import TensorType
from .token_values import S

Array = np.ndarray[Any, Any]
Step = tuple[int, Any, Any]


def step_table(short: Array, long: Array, kind: TensorType) -> Node | None:
    """The value of a type [1, ..., S, S + c], of which two lengths' numbers are given; None where
    these are no step, or not the same one.
    """
    lead, pair = kind.shape[:-2], kind.shape[-2:]
    if any(d != 1 for d in lead) or any(names_in(d) != frozenset({str(S)}) for d in pair):
        return None
    step = _step(short)
    if step is None or step != _step(long):
        return None
    by, low, high = step
    row = t.reshape(t.iota(size=pair[0], dtype="i64"), shape=(pair[0], 1))
    column = t.reshape(t.iota(size=pair[1], dtype="i64"), shape=(1, pair[1]))
    below = t.le(column, t.add(row, t.scalar(by, "i64")))
    if kind.dtype == "bool":
        made = below if low else t.logical_not(below)
    else:
        made = t.where(below, t.scalar(low, kind.dtype), t.scalar(high, kind.dtype))
    return made if not lead else t.reshape(made, shape=kind.shape)


def _step(table: Array) -> Step | None:
    """(k, a, b) of a table that is a where column <= row + k, and b elsewhere."""
    shape: tuple[int, ...] = table.shape
    rows, columns = shape[-2:]
    flat: Array = table.reshape((rows, columns))
    apart: Array = np.arange(rows)[:, None] - np.arange(columns)[None, :]
    low: Any = flat[-1, 0].item()
    high: Any = flat[0, -1].item()
    if low == high:
        return None
    by = -int(apart[flat == low].min())
    below: Array = apart >= -by
    as_step = bool((flat[below] == low).all() and (flat[~below] == high).all())
    return (by, low, high) if as_step else None
