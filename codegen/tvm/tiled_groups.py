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
from .loops import flat_index
from .tiles import PANEL, Panel, Steps, Sums, emit_panels, panels_of, plain
from .values import Expr, bind, const, i64

VECTORS = 4
"""Column vectors of a panel: a tile of x is multiplied by each of them, in sums of its own."""


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
    steps = replace(steps, cut=max(1, panels_of(linear).chunk * PANEL // VECTORS))
    tiles = bind(tirx.floordiv(rows + i64(amx.ROWS - 1), i64(amx.ROWS)))
    factors = _factors(linear, rows, steps, tiles, codes)

    def body(panel: Panel, chunk: Expr, last: bool) -> None:
        _groups(panel, codes, factors, (chunk, steps.chunk // steps.count))

    emit_panels(linear, rows, steps, Sums("float32", plain, VECTORS, rooms=2 * VECTORS), body)


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
    """All rows' sums with a chunk's groups more.

    The units of a chunk are its groups of each row tile. While the tiles multiply one, the sums
    of the one before leave them and those of the one before that, in memory, are scaled: dot
    products of 16 cycles, an instruction each, and vectors of the other units then overlap.
    """
    number, groups = chunk
    steps = panel.steps
    shape = (len(panel.vectors), groups, steps.count, steps.size // 4, 4 * LANES)
    held = amx.buffer(shape, "int8")
    low = bind(number * i64(groups))
    count = bind(tirx.min(i64(steps.groups) - low, i64(groups)))
    for v in range(len(panel.vectors)):
        with T.serial(i64(0), count) as g:
            _unpack(panel, codes, held, v, low, g)
    with T.If(tirx.EQ(number, i64(0))), T.Then():
        _clear(panel)
    unit = _Unit(panel, codes, factors, held, low, count)
    unit.begin()
    units = bind(panel.tiles * count)
    with T.serial(i64(0), units) as n:
        unit.multiply(n)
    unit.end(units)


def _clear(panel: Panel) -> None:
    """Sums of zero, for all rows."""
    zero = T.broadcast(const(0, "float32"), LANES)
    with T.serial(i64(0), panel.tiles) as tile:
        for v in range(len(panel.vectors)):
            with T.serial(i64(0), i64(amx.ROWS)) as r:
                at = [*panel.row_of_sums(tile, v, r), T.ramp(i64(0), i64(1), LANES)]
                T.buffer_store(panel.sums, zero, at)


def _unpack(panel: Panel, codes: Codes, held: tirx.Buffer, vector: int, low: Expr, g: Expr) -> None:
    runs = panel.steps.size // 4

    def put(run: Expr, value: Expr) -> None:
        at = [tirx.floordiv(run, i64(runs)), tirx.floormod(run, i64(runs))]
        T.buffer_store(held, value, [i64(vector), g, *at, T.ramp(i64(0), i64(1), 4 * LANES)])

    codes.unpack(panel, vector, bind(low + g), put)


@dataclass(frozen=True)
class _Unit:
    """A row tile and a group at a time, by all vectors of the panel, of a chunk's `count` groups
    from `low` on. What leaves the tiles lies in the panel's room aside, [turn, vector, 16, 16].
    """

    panel: Panel
    codes: Codes
    factors: tirx.Buffer
    held: tirx.Buffer
    low: Expr
    count: Expr

    @property
    def vectors(self) -> range:
        """The column vectors of the panel, a tile of sums each."""
        return range(len(self.panel.vectors))

    def begin(self) -> None:
        """Nothing lies aside, and the tiles hold nothing."""
        zero = T.broadcast(tirx.IntImm("int32", 0), LANES)
        for v in self.vectors:
            with T.serial(i64(0), i64(amx.ROWS)) as r:
                T.buffer_store(self._room(1, v), zero, [r, T.ramp(i64(0), i64(1), LANES)])
            amx.zero(v)

    def multiply(self, n: Expr) -> None:
        """The products of unit n; the sums of unit n - 1 leave their tiles, those of n - 2 are
        scaled.
        """
        turn = bind(tirx.floormod(n, i64(2)))
        tile, g = bind(tirx.floordiv(n, self.count)), bind(tirx.floormod(n, self.count))
        gather = self._gather(bind(tirx.max(n - i64(2), i64(0))), bind(i64(1) - turn))
        registers = amx.Registers.one(len(self.vectors))
        (x,), w = registers.x, registers.w
        steps = self.panel.steps.count
        done = 0
        for s in range(steps):
            step = bind((self.low + g) * i64(steps) + i64(s))
            first = self.panel.x[(*self.panel.steps.place(tile, step), i64(0), i64(0))]
            amx.load(x, first, self.panel.steps.size)
            for v in self.vectors:
                number = s * len(self.vectors) + v
                register = w[number % len(w)]
                amx.load(register, self.held[i64(v), g, i64(s), i64(0), i64(0)])
                if s == 0:
                    amx.store(v, self._room(turn, v)[i64(0), i64(0)])
                    amx.zero(v)
                amx.multiply("tdpbssd", v, x, register)
                until = amx.ROWS * (number + 1) // (steps * len(self.vectors))
                for r in range(done, until):
                    gather(r)
                done = until

    def end(self, units: Expr) -> None:
        """What the last two units have left."""
        turn = bind(tirx.floormod(units, i64(2)))
        for v in self.vectors:
            amx.store(v, self._room(turn, v)[i64(0), i64(0)])
        for before, place in ((2, i64(1) - turn), (1, turn)):
            gather = self._gather(bind(tirx.max(units - i64(before), i64(0))), bind(place))
            for r in range(amx.ROWS):
                gather(r)

    def _gather(self, n: Expr, turn: Expr) -> Callable[[int], None]:
        """gather(r): a row's sums with those of unit n more, which lie aside at `turn`."""
        panel, lanes = self.panel, T.ramp(i64(0), i64(1), LANES)
        tile = bind(tirx.floordiv(n, self.count))
        at = bind(self.low + tirx.floormod(n, self.count))
        scales = [bind(self.codes.scale(panel, v, at)) for v in self.vectors]

        def row(r: int) -> None:
            factor = bind(T.broadcast(self.factors[tile, at, i64(r)], LANES))
            for v, scale in enumerate(scales):
                place = [*panel.row_of_sums(tile, v, i64(r)), lanes]
                whole = tirx.Cast(f"float32x{LANES}", self._room(turn, v)[i64(r), lanes])
                T.buffer_store(
                    panel.sums, panel.sums[tuple(place)] + whole * (scale * factor), place
                )

        return row

    def _room(self, turn: Expr | int, vector: int) -> tirx.Buffer:
        """Where the sums of a vector lie aside."""
        first = i64(turn) if isinstance(turn, int) else turn
        return self.panel.aside_at(first * i64(VECTORS) + i64(vector), "int32")
