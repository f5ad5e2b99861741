"""Linears by AMX tiles over codes with a scale for each group of k, in whole numbers.

The codes of a chunk are unpacked once for all rows, without their offset; a group's sums leave the
tile and are scaled. Sums are exact in each group, whatever the model computes in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from . import amx
from .isa import LANES
from .linear import Linear
from .loops import Work, flat_index
from .tiles import ROOMS, Panel, Steps, emit_panels, panels_of, plain, store_tiles
from .values import Expr, bind, const, i64


@dataclass(frozen=True)
class Codes:
    """The codes of one chunk of groups, unpacked: `unpack(panel, vector, group, into)` writes a
    group of [step, run, 64] signed bytes; `scale(panel, vector, group)` is its columns' scales;
    `factor(row, group)` the scale of a row of x.
    """

    unpack: Callable[[Panel, int, Expr, Callable[[Expr, Expr], None]], None]
    scale: Callable[[Panel, int, Expr], Expr]
    factor: Callable[[list[Expr], Expr], Expr]


def emit_groups(linear: Linear, rows: Expr, steps: Steps, codes: Codes) -> None:
    """A linear whose weights have a scale for each group of k."""
    steps = replace(steps, cut=panels_of(linear).chunk)
    tiles = bind(tirx.floordiv(rows + i64(amx.ROWS - 1), i64(amx.ROWS)))
    factors = _factors(linear, rows, steps, tiles, codes)

    def body(panel: Panel, work: Work, chunk: Expr, last: bool) -> None:
        _groups(panel, codes, factors, (chunk, steps.chunk // steps.count))
        if last:
            with T.serial(i64(0), panel.tiles) as tile:
                store_tiles(panel, work, (tile, 1), plain)

    emit_panels(linear, rows, steps, "float32", body)


def _factors(linear: Linear, rows: Expr, steps: Steps, tiles: Expr, codes: Codes) -> tirx.Buffer:
    """The scales of x as [tile, group, 16]."""
    made = T.alloc_buffer((tiles, i64(steps.groups), i64(amx.ROWS)), "float32")
    with T.parallel(i64(0), tiles) as tile, T.serial(i64(0), i64(amx.ROWS)) as r:
        at = bind(tirx.min(tile * i64(amx.ROWS) + r, rows - i64(1)))
        row = flat_index(linear.kernel.work(), at, linear.rows)
        with T.serial(i64(0), i64(steps.groups)) as g:
            T.buffer_store(made, codes.factor(row, g), [tile, g, r])
    return made


def _groups(panel: Panel, codes: Codes, factors: tirx.Buffer, chunk: tuple[Expr, int]) -> None:
    """All rows' sums with a chunk's groups more."""
    number, groups = chunk
    steps = panel.steps
    shape = (len(panel.vectors), groups, steps.count, steps.size // 4, 4 * LANES)
    held = amx.buffer(shape, "int8")
    low = bind(number * i64(groups))
    count = bind(tirx.min(i64(steps.groups) - low, i64(groups)))
    for v in range(len(panel.vectors)):
        with T.serial(i64(0), count) as g:
            _unpack(panel, codes, held, v, low, g)
    with T.serial(i64(0), panel.tiles) as tile:
        for v in range(len(panel.vectors)):
            _scaled_groups(panel, codes, factors, held, (v, tile, low, count, number))


def _unpack(panel: Panel, codes: Codes, held: tirx.Buffer, vector: int, low: Expr, g: Expr) -> None:
    runs = panel.steps.size // 4

    def put(run: Expr, value: Expr) -> None:
        at = [tirx.floordiv(run, i64(runs)), tirx.floormod(run, i64(runs))]
        T.buffer_store(held, value, [i64(vector), g, *at, T.ramp(i64(0), i64(1), 4 * LANES)])

    codes.unpack(panel, vector, bind(low + g), put)


def _scaled_groups(
    panel: Panel,
    codes: Codes,
    factors: tirx.Buffer,
    held: tirx.Buffer,
    place: tuple[int, Expr, Expr, Expr, Expr],
) -> None:
    """The sums of a row tile and a vector with a chunk's groups more, each scaled by its own."""
    v, tile, low, count, chunk = place
    lanes = T.ramp(0, 1, LANES)
    totals = [T.alloc_buffer((LANES,), "float32") for _ in range(amx.ROWS)]
    with T.If(tirx.EQ(chunk, i64(0))):
        with T.Then():
            for total in totals:
                T.buffer_store(total, T.broadcast(const(0, "float32"), LANES), [lanes])
        with T.Else():
            for r, total in enumerate(totals):
                T.buffer_store(total, panel.sums[(*panel.row_of_sums(tile, v, r), lanes)], [lanes])
    rooms = [panel.aside_at(number, "int32") for number in range(ROOMS)]

    def some(first: Expr, number: int) -> None:
        for n in range(number):
            _group_product(panel, held, (v, tile), (bind(first + i64(n)), low), (n, rooms[n]))
        for n in range(number):
            at = bind(low + first + i64(n))
            scale = codes.scale(panel, v, at)
            for r, total in enumerate(totals):
                both = scale * T.broadcast(factors[tile, at, i64(r)], LANES)
                value = tirx.Cast(f"float32x{LANES}", rooms[n][i64(r), lanes])
                T.buffer_store(total, total[lanes] + value * both, [lanes])

    pairs = bind(tirx.floordiv(count, i64(ROOMS)))
    with T.serial(i64(0), pairs) as pair:
        some(bind(pair * i64(ROOMS)), ROOMS)
    with T.serial(pairs * i64(ROOMS), count) as g:
        some(g, 1)
    for r, total in enumerate(totals):
        T.buffer_store(panel.sums, total[lanes], [*panel.row_of_sums(tile, v, r), lanes])


def _group_product(
    panel: Panel,
    held: tirx.Buffer,
    place: tuple[int, Expr],
    group: tuple[Expr, Expr],
    into: tuple[int, tirx.Buffer],
) -> None:
    """The whole numbers of one group in a tile, stored."""
    (v, tile), (g, low), (number, room) = place, group, into
    steps, sums = panel.steps, amx.SUMS[number]
    amx.zero(sums)
    with T.serial(i64(0), i64(steps.count)) as s:
        step = bind((low + g) * i64(steps.count) + s)
        x = panel.x[(*steps.place(tile, step), i64(0), i64(0))]
        amx.load(amx.X[number % 2], x, steps.size)
        amx.load(amx.W[number % 2], held[i64(v), g, s, i64(0), i64(0)])
        amx.multiply("tdpbssd", sums, amx.X[number % 2], amx.W[number % 2])
    amx.store(sums, room[i64(0), i64(0)])
