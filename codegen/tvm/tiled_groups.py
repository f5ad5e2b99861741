"""Linears by AMX tiles over codes with a scale for each group of k, in whole numbers.

The codes of a chunk are unpacked once for all rows, without their offset; a group's sums leave the
tile and are scaled. Sums are exact in each group, whatever the model computes in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...ir.ops.quantized import operands
from . import amx
from .fetch import fetch
from .isa import LANES
from .linear import Linear, Tiling
from .panels import PANEL, Panel, Put, Steps, emit_all
from .streams import read_after
from .tiles import Body, Sums, emit_panels, panels_of, plain
from .values import Expr, bind, const, i64

VECTORS = 4
"""Column vectors of a panel: a tile of x is multiplied by each of them, in sums of its own."""


@dataclass(frozen=True)
class Codes:
    """What groups hold: `unpack(panel, block, group, put)` gives put(run, bytes) for the signed
    bytes of a group of a stored block of columns, run of four k by run, some for each turn;
    `scale(panel, block, group)` is its columns' scales; `factor(row, group)` the scale of a row
    of x.
    """

    unpack: Callable[[Panel, Expr, Expr, Put], Iterator[None]]
    scale: Callable[[Panel, Expr, Expr], Expr]
    factor: Callable[[list[Expr], Expr], Expr]


def emit_groups(linear: Linear, tiling: Tiling, steps: Steps, codes: Codes) -> None:
    """A linear whose weights have a scale for each group of k."""
    steps = replace(steps, cut=max(1, panels_of(linear).chunk * PANEL // VECTORS))
    factors = _scales_of_rows(tiling, steps, codes)

    def chunk(panel: Panel, number: Expr, last: bool) -> None:
        _chunk(panel, codes, factors, (number, steps.chunk // steps.count))

    sums = Sums("float32", plain, VECTORS, rooms=2 * VECTORS)

    def few(panel: Callable[[Expr], Panel], count: Expr, height: int) -> None:
        _few_tiles(panel, count, codes, factors, height)

    emit_panels(linear, tiling, steps, sums, Body(chunk, few=few))


def _scales_of_rows(tiling: Tiling, steps: Steps, codes: Codes) -> tirx.Buffer:
    """The scales of x as [tile, group, 16]."""
    tiles = tiling.tiles
    most, _ = tiling.most
    made = T.alloc_buffer((most, i64(steps.groups), i64(amx.ROWS)), "float32")
    with T.parallel(i64(0), tiles) as tile, T.serial(i64(0), i64(amx.ROWS)) as r:
        row = tiling.index(bind(tile * i64(amx.ROWS) + r))
        with T.serial(i64(0), i64(steps.groups)) as g:
            T.buffer_store(made, codes.factor(row, g), [tile, g, r])
    return made


def _chunk(panel: Panel, codes: Codes, factors: tirx.Buffer, chunk: tuple[Expr, int]) -> None:
    """All rows' sums with a chunk's groups more, row tile by row tile: a tile's sums stay near."""
    number, groups = chunk
    low = bind(number * i64(groups))
    count = bind(tirx.min(i64(panel.steps.groups) - low, i64(groups)))
    held = _held(panel, groups)
    with T.serial(i64(0), count) as g:
        emit_all(_unpack(panel, codes, held, bind(low + g), g))
    with T.If(tirx.EQ(number, i64(0))), T.Then():
        _clear_sums(panel)

    def at(n: Expr) -> tuple[Panel, Expr, Expr]:
        return panel, bind(tirx.truncdiv(n, count)), bind(low + tirx.truncmod(n, count))

    unit = _Unit(panel, codes, factors, held, at, lambda n: bind(tirx.truncmod(n, count)))
    units = bind(panel.tiles * count)
    unit.begin()
    with T.serial(i64(0), units) as n:
        unit.multiply(n)
    unit.end(units)


def _few_tiles(
    panel: Callable[[Expr], Panel],
    count: Expr,
    codes: Codes,
    factors: tirx.Buffer,
    height: int = amx.ROWS,
) -> None:
    """The sums of few rows over all of k in a run of `count` panels, group by group, each unpacked
    and the one after it asked for while the one before is multiplied: memory is what bounds them,
    and so weights are read once and in their order. `height`: rows of a tile that there are.
    """
    first = panel(i64(0))
    groups, tiles = i64(first.steps.groups), first.tiles
    held, steps = _held(first, 2), bind(count * groups)
    with T.serial(i64(0), count) as place:
        _clear_sums(panel(place))
    emit_all(_unpack(first, codes, held, i64(0), i64(0)))

    def step(number: Expr) -> tuple[Panel, Expr]:
        at = bind(tirx.min(number, steps - i64(1)))
        return panel(bind(tirx.truncdiv(at, groups))), bind(tirx.truncmod(at, groups))

    def at(n: Expr) -> tuple[Panel, Expr, Expr]:
        part, group = step(tirx.truncdiv(n, tiles))
        return part, bind(tirx.truncmod(n, tiles)), group

    def slot(n: Expr) -> Expr:
        return bind(tirx.truncmod(tirx.truncdiv(n, tiles), i64(2)))

    unit = _Unit(first, codes, factors, held, at, slot, height)
    unit.begin()
    with T.serial(i64(0), steps) as m:
        (part, group), (later, behind) = step(m + i64(1)), step(m + i64(2))
        after = [(block, behind - group) for block in later.stored()]
        free = bind(tirx.truncmod(m + i64(1), i64(2)))
        unit.multiply(bind(m * tiles), _unpack(part, codes, held, group, free, after))
        if height == amx.ROWS:
            with T.serial(i64(1), tiles) as tile:
                unit.multiply(bind(m * tiles + tile))
    unit.end(bind(steps * tiles))


def _held(panel: Panel, groups: int) -> tirx.Buffer:
    """Room for the unpacked codes of so many groups."""
    steps = panel.steps
    shape = (len(panel.vectors), groups, steps.count, steps.size // 4, 4 * LANES)
    return amx.buffer(shape, "int8")


def _clear_sums(panel: Panel) -> None:
    """Sums of zero, for all rows."""
    zero = T.broadcast(const(0, "float32"), LANES)
    with T.serial(i64(0), panel.tiles) as tile:
        for v in range(len(panel.vectors)):
            with T.serial(i64(0), i64(amx.ROWS)) as r:
                at = [*panel.row_of_sums(tile, v, r), T.ramp(i64(0), i64(1), LANES)]
                T.buffer_store(panel.sums, zero, at)


def _unpack(
    panel: Panel,
    codes: Codes,
    held: tirx.Buffer,
    group: Expr,
    slot: Expr,
    after: list[tuple[Expr, Expr]] | None = None,
) -> Iterator[None]:
    """A group's codes of all vectors, into a slot, a part for each turn; `after`: what to ask for
    meanwhile.
    """
    runs = panel.steps.size // 4
    for v, block in enumerate(panel.stored()):
        part = panel
        if after is not None:
            part = replace(panel, linear=replace(panel.linear, after=after[v]))
            _ask_scales(part.linear, block, group)

        def put(run: Expr, value: Expr, v: int = v) -> None:
            at = [tirx.truncdiv(run, i64(runs)), tirx.truncmod(run, i64(runs))]
            T.buffer_store(held, value, [i64(v), slot, *at, T.ramp(i64(0), i64(1), 4 * LANES)])

        yield from codes.unpack(part, block, group, put)


def _ask_scales(linear: Linear, block: Expr, group: Expr) -> None:
    """Ask for what scales a group's codes, as for them."""
    found = operands(linear.node)
    for weight in (found.multipliers, found.zeros, found.scale):
        if weight is not None:
            buffer = linear.kernel.places[weight].buffer
            rows = int(buffer.shape[1]) // int(found.scale.shape[-2])
            inner = (i64(0),) * (len(buffer.shape) - 2)
            fetch(buffer, read_after(linear, buffer, [block, group * i64(rows), *inner]))


@dataclass(frozen=True)
class _Unit:
    """Units of work, a row tile and a group of a panel each, by all vectors of the panel: `at(n)`
    are the panel, tile and group of unit n; `slot(n)` is where its codes are held. What leaves the
    tiles lies in the room aside, [turn, vector, 16, 16]. Of a tile's rows there are `height`.

    While the tiles multiply a unit, the sums of the one before leave them and those of the one
    before that are scaled: a dot product takes 16 cycles and what else is done meanwhile is done
    beside it.
    """

    panel: Panel
    codes: Codes
    factors: tirx.Buffer
    held: tirx.Buffer
    at: Callable[[Expr], tuple[Panel, Expr, Expr]]
    slot: Callable[[Expr], Expr]
    height: int = amx.ROWS

    @property
    def vectors(self) -> range:
        """The column vectors of a panel, a tile of sums each."""
        return range(len(self.panel.vectors))

    def begin(self) -> None:
        """Nothing lies aside, and the tiles hold nothing."""
        zero = T.broadcast(tirx.IntImm("int32", 0), LANES)
        for v in self.vectors:
            with T.serial(i64(0), i64(self.height)) as r:
                T.buffer_store(self._room(1, v), zero, [r, T.ramp(i64(0), i64(1), LANES)])
            amx.zero(v)

    def multiply(self, n: Expr, beside: Iterator[None] | None = None) -> None:
        """The products of unit n; the sums of unit n - 1 leave their tiles, those of n - 2 are
        scaled, and what is `beside` is emitted.
        """
        turn = bind(tirx.truncmod(n, i64(2)))
        panel, tile, group = self.at(n)
        slot = self.slot(n)
        gather = self._gather(bind(tirx.max(n - i64(2), i64(0))), bind(i64(1) - turn))
        registers = amx.Registers.one(VECTORS)
        (x,), w = registers.x, registers.w
        steps = panel.steps.count
        share = -(-panel.steps.length // (4 * steps * panel.linear.layout.pairs))
        turns, done = beside or iter(()), 0
        for s in range(steps):
            step = bind(group * i64(steps) + i64(s))
            amx.load(x, panel.tile_of_x(tile, step), panel.steps.size)
            for v in self.vectors:
                number = s * len(self.vectors) + v
                register = w[number % len(w)]
                amx.load(register, self.held[i64(v), slot, i64(s), i64(0), i64(0)])
                if s == 0:
                    amx.store(v, self._room(turn, v)[i64(0), i64(0)])
                    amx.zero(v)
                amx.multiply("tdpbssd", v, x, register)
                until = self.height * (number + 1) // (steps * len(self.vectors))
                emit_all(islice(turns, share))
                for r in range(done, until):
                    gather(i64(r))
                done = until
        emit_all(turns)

    def end(self, units: Expr) -> None:
        """What the last two units have left."""
        turn = bind(tirx.truncmod(units, i64(2)))
        for v in self.vectors:
            amx.store(v, self._room(turn, v)[i64(0), i64(0)])
        for before, place in ((2, i64(1) - turn), (1, turn)):
            gather = self._gather(bind(tirx.max(units - i64(before), i64(0))), bind(place))
            with T.serial(i64(0), i64(self.height)) as r:
                gather(r)

    def _gather(self, n: Expr, turn: Expr) -> Callable[[Expr], None]:
        """gather(r): a row's sums with those of unit n more, which lie aside at `turn`."""
        lanes = T.ramp(i64(0), i64(1), LANES)
        panel, tile, group = self.at(n)
        scales = [bind(self.codes.scale(panel, b, group)) for b in panel.stored()]

        def row(r: Expr) -> None:
            factor = bind(T.broadcast(self.factors[panel.base + tile, group, r], LANES))
            for v, scale in enumerate(scales):
                place = (*panel.row_of_sums(tile, v, r), lanes)
                whole = tirx.Cast(f"float32x{LANES}", self._room(turn, v)[r, lanes])
                total = panel.sums[place] + whole * (scale * factor)
                T.buffer_store(panel.sums, total, list(place))

        return row

    def _room(self, turn: Expr | int, vector: int) -> tirx.Buffer:
        """Where the sums of a vector lie aside."""
        first = i64(turn) if isinstance(turn, int) else turn
        return self.panel.aside_at(first * i64(VECTORS) + i64(vector), "int32")
