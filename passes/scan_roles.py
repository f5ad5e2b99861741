"""Which part each input of a region plays in a scan, found by changing them and looking.

A region is a function from values of each token [B, S, ...] to one such value. In a linear scan
(ir/ops/recurrent.py) every operand leaves its own mark: queries touch their own token's result
alone, keys and values all later ones; without keys, values or beta nothing is left, without a decay
the state still is; an axis that the operands share with the result is one of heads or of values,
one that is summed over is that of the state's rows. How the region spells it is of no matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
# (values [B, S, ...] of each input) -> the value [B, S, ...] of the result, in float64.
Probe = Callable[[Sequence[Array]], Array]
TOKEN = 1  # which one is changed
SMALL = 1e-4  # what stands for nothing: a decay of 0 is one that some spellings divide by
NOTHING = 1e-9  # of the largest value: what rounding leaves of a difference


class NoScanError(Exception):
    """Why a region is no linear scan."""


@dataclass(frozen=True)
class Axis:
    """How an axis of an input meets the result: `beside` is the result's axis, None where it is
    summed over; `repeat` is how many of the result's entries in a row read one of the input's."""

    size: int
    beside: int | None
    repeat: int = 1


@dataclass(frozen=True)
class Marks:
    """What changing an input does: its axes behind batch and length, and four claims."""

    axes: tuple[Axis, ...]
    is_linear: bool
    is_own: bool
    is_needed: bool

    @property
    def summed(self) -> tuple[int, ...]:
        """The axes that are summed over."""
        return tuple(i for i, axis in enumerate(self.axes) if axis.beside is None)


@dataclass(frozen=True)
class Roles:
    """The inputs, by number, that are multiplied to make each operand; sizes of the axes.

    `heads` and `values` are axes of the result; `gates` multiply the result.
    """

    marks: tuple[Marks, ...]
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    numbers: tuple[int, ...]
    gates: tuple[int, ...]
    decay: int | None
    beta: tuple[int, ...]
    is_delta: bool
    heads: tuple[int, ...]
    values: tuple[int, ...]
    rows: int
    sizes: tuple[int, ...]


def find_roles(probe: Probe, shapes: Sequence[tuple[int, ...]], length: int = 4) -> Roles:
    """The roles of inputs [B, length, *shape]; raises NoScanError."""
    rng = np.random.default_rng()
    given = [drawn(rng, (2, length, *shape)) for shape in shapes]
    result = probe(given)
    if not np.isfinite(result).all() or not np.abs(result).max():
        raise NoScanError("its values are not finite, or all zero")
    # By the largest of each token: a state that grows is not to hide what came before.
    largest = np.abs(result).max(axis=(0, *range(2, result.ndim)), keepdims=True)
    level = np.where(largest > 0, largest, 1.0)
    marks = tuple(
        _marks(lambda x: probe(x) / level, given, result / level, i) for i in range(len(given))
    )
    return _assigned(marks, result.shape[2:])


def drawn(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Random numbers between 0.1 and 0.9: what may be a decay, or the logarithm of one."""
    return rng.uniform(0.1, 0.9, shape)


def _marks(probe: Probe, given: Sequence[Array], result: Array, at: int) -> Marks:
    def changed(value: Array) -> Array:
        return probe([value if i == at else v for i, v in enumerate(given)])

    own = given[at].copy()
    own[:, TOKEN] *= 1.5
    touched = _differs(changed(own), result, 1)
    if touched[:TOKEN].any() or not touched[TOKEN]:
        raise NoScanError("a token's value depends on later tokens, or not on its own")
    twice = changed(2 * given[at])
    little = changed(SMALL * given[at])
    axes = tuple(_axis(changed, given[at], result, axis) for axis in range(2, given[at].ndim))
    return Marks(
        axes,
        is_linear=bool(np.abs(twice - 2 * result).max() <= 1e3 * NOTHING),
        is_own=not touched[TOKEN + 1 :].any(),
        is_needed=bool(np.abs(little[:, TOKEN]).max() <= 100 * SMALL),
    )


def _differs(a: Array, b: Array, axis: int) -> Array:
    """Along an axis, whether anything there differs."""
    apart = np.abs(a - b).max(axis=tuple(i for i in range(a.ndim) if i != axis))
    return ~(apart <= NOTHING * np.abs(b).max())


def _axis(changed: Callable[[Array], Array], value: Array, result: Array, axis: int) -> Axis:
    """How an axis of an input meets the result: by what its first and its last entry touch."""
    size = value.shape[axis]
    touched: list[Array] = []
    for entry in (0, size - 1):
        moved = value.copy()
        np.moveaxis(moved, axis, 0)[entry] *= 1.5
        touched.append(changed(moved))
    for beside in range(2, result.ndim):
        wide = int(result.shape[beside])
        seen = [_differs(t, result, beside) for t in touched]
        if size == 1 or wide % size or all(s.all() for s in seen):
            continue
        repeat = wide // size
        place = np.arange(wide)
        first, last = seen
        if (first == (place < repeat)).all() and (last == (place >= wide - repeat)).all():
            return Axis(size, beside - 2, repeat)
        raise NoScanError("an input's entries meet the result's in an order of their own")
    return Axis(size, None)


def _assigned(marks: tuple[Marks, ...], sizes: tuple[int, ...]) -> Roles:
    """The marks as roles; raises NoScanError where they do not make one scan."""
    every = range(len(marks))
    if any(len(m.summed) > 1 for m in marks):
        raise NoScanError("an input is summed over two of its axes")
    linear = [i for i in every if marks[i].is_linear]
    bent = [i for i in every if not marks[i].is_linear]
    decays = [i for i in bent if not marks[i].is_needed]
    delta = [i for i in bent if marks[i].is_needed]
    if len(decays) > 1 or any(marks[i].is_own for i in bent):
        raise NoScanError("more than the decay and the operands of a delta rule are not linear")

    def chosen(among: Sequence[int], own: bool, summed: bool) -> tuple[int, ...]:
        return tuple(i for i in among if marks[i].is_own == own and bool(marks[i].summed) == summed)

    rows = {marks[i].axes[a].size for i in every for a in marks[i].summed}
    if len(rows) > 1:
        raise NoScanError(f"inputs are summed over axes of sizes {sorted(rows)}")
    queries = chosen(linear, own=True, summed=True)
    keys = (*chosen(linear, own=False, summed=True), *chosen(delta, own=False, summed=True))
    if bool(queries) != bool(keys):
        raise NoScanError("it has queries and no keys, or keys and no queries")
    beta = chosen(delta, own=False, summed=False)
    shared = (*queries, *keys, *decays, *beta)
    beside = {axis.beside for i in shared for axis in marks[i].axes}
    heads = tuple(a for a in range(len(sizes)) if a in beside)
    return Roles(
        marks,
        queries,
        keys,
        numbers=chosen(linear, own=False, summed=False),
        gates=chosen(linear, own=True, summed=False),
        decay=decays[0] if decays else None,
        beta=beta,
        is_delta=bool(delta),
        heads=heads,
        values=tuple(a for a in range(len(sizes)) if a not in heads),
        rows=rows.pop() if rows else 1,
        sizes=sizes,
    )
