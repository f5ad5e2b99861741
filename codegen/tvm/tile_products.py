"""Products of AMX tiles, by two row tiles and two column vectors where registers allow: what is
added to the sums of a panel's rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from . import amx
from .panels import PANEL, Panel
from .values import Expr, bind, i64

Block = Callable[[Expr, int, "Expr | None"], None]
"""block(first tile, count, before): some row tiles; the sums of as many from `before` on, if it is
given, are still in the registers.
"""


def over_tiles(panel: Panel, block: Block) -> None:
    """All row tiles, by twos where registers allow: the sums of two leave the registers while the
    next two are begun, for the tiles that they come from are not ready for some fifty cycles.
    """
    if len(panel.vectors) > PANEL:
        with T.serial(i64(0), panel.tiles) as t:
            block(t, 1, None)
        return
    pairs = bind(tirx.truncdiv(panel.tiles, i64(2)))
    with T.serial(i64(0), pairs) as t:
        before = tirx.Select(tirx.EQ(t, i64(0)), panel.tiles, (t - i64(1)) * i64(2))
        block(bind(t * i64(2)), 2, bind(before))
    with T.If(tirx.GT(pairs, i64(0))), T.Then():
        _store_sums(panel, bind(pairs * i64(2) - i64(2)), 2)
    with T.If(tirx.EQ(tirx.truncmod(panel.tiles, i64(2)), i64(1))), T.Then():
        block(bind(panel.tiles - i64(1)), 1, None)


Weights = Callable[[int, Expr], Expr]
"""weights(vector, step): the element where a step's tile of w begins."""


@dataclass(frozen=True)
class Stretch:
    """The steps of k that are added: from `low` up to `high`, then a last, short one by the weights
    of `tail`; `start`: whether the sums begin at zero, True for always and None for never.
    """

    low: Expr
    high: Expr
    start: Expr | bool | None
    weights: Weights
    tail: tirx.Buffer | None = None

    @property
    def whole(self) -> bool:
        """Whether there is a step before the last, short one."""
        low, high = self.low, self.high
        known = isinstance(low, tirx.IntImm) and isinstance(high, tirx.IntImm)
        return not known or int(low.value) < int(high.value)


def add_steps(
    panel: Panel, kind: str, stretch: Stretch, first: Expr, count: int, before: Expr | None
) -> None:
    """Add a stretch to the sums of `count` row tiles from `first` on by all vectors. With `before`
    the sums of as many row tiles are stored on the way, and these stay in the registers.
    """
    columns = len(panel.vectors)
    register = amx.Registers.of(count, columns)

    def begin(i: int, v: int) -> None:
        if before is not None:
            amx.store(i * columns + v, _sums_at(panel, before + i64(i), v))
        _begin_sum(panel, stretch.start, i * columns + v, first + i64(i), v)

    def step(at: Expr, weights: Weights, begin: Callable[[int, int], None] | None = None) -> None:
        _add_products(panel, kind, register, (first, at), weights, begin)

    if stretch.whole:
        step(stretch.low, stretch.weights, begin)
        with T.serial(stretch.low + i64(1), stretch.high) as s:
            step(s, stretch.weights)
    if (tail := stretch.tail) is not None:
        last = i64(panel.steps.count - 1)
        step(
            last,
            lambda v, _: tail[i64(v), i64(0), i64(0)],
            None if stretch.whole else begin,
        )
    if before is None:
        _store_sums(panel, first, count)


def _store_sums(panel: Panel, first: Expr, count: int) -> None:
    """The sums of row tiles, out of the registers."""
    columns = len(panel.vectors)
    for i in range(count):
        for v in range(columns):
            amx.store(i * columns + v, _sums_at(panel, first + i64(i), v))


def _sums_at(panel: Panel, tile: Expr, vector: int) -> Expr:
    """The element where a tile's sums begin."""
    return panel.sums[(*panel.row_of_sums(tile, vector), i64(0))]


def _begin_sum(
    panel: Panel, start: Expr | bool | None, register: int, tile: Expr, vector: int
) -> None:
    """What a tile's sums begin with."""
    if start is True:
        return amx.zero(register)
    if start is None:
        return amx.load(register, _sums_at(panel, tile, vector))
    with T.If(start):
        with T.Then():
            amx.zero(register)
        with T.Else():
            amx.load(register, _sums_at(panel, tile, vector))


def _add_products(
    panel: Panel,
    kind: str,
    register: amx.Registers,
    place: tuple[Expr, Expr],
    weights: Weights,
    begin: Callable[[int, int], None] | None,
) -> None:
    """Add one step's products to the tiles of sums; `place` is the first row tile of x and the
    step. begin(row tile, vector) goes before a tile's first product.
    """
    (first, step), columns = place, len(panel.vectors)
    for i, x in enumerate(register.x):
        amx.load(x, panel.tile_of_x(first + i64(i), step))
        for v, w in enumerate(register.w):
            if i == 0:
                amx.load(w, weights(v, step))
            if begin is not None:
                begin(i, v)
            amx.multiply(kind, i * columns + v, x, w)
