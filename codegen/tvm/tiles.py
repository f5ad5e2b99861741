"""The linear template by AMX tiles, for more rows than registers serve well.

x is laid out once as tiles: 16 rows by one step of k (64 bytes) lie together. A panel is two
vectors of columns; k goes in chunks. The weights of a panel's chunk stay in the first cache while
all rows pass; the rows' chunk stays in the second while the panels of a run pass; the sums of a
run wait there between chunks. Threads take runs. Three forms:

- whole (tiled_rows.py): a tile of sums runs over all of k. bfloat16, and bytes with one scale a
  row of w.
- groups (tiled_groups.py): codes with a scale for each group of k, multiplied as whole numbers; a
  group's sums leave the tile and are scaled.
- widened (tiled_codes.py): the same, multiplied as bfloat16 with their scales.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from . import amx
from .isa import LANES
from .linear import Linear, Share, Tiling
from .loops import Work
from .panels import PANEL, Panel, Steps
from .register_tiles import store_rows
from .row_tiles import MANY, Panels
from .values import Expr, bind, const, i64, vectorized

Read = Callable[[list[Expr], Expr, Expr], Expr]
"""read(row, group, elements): elements of x, one or a ramp of them, as their bits in tiles."""


def panels_of(linear: Linear) -> Panels:
    """The chosen sizes of chunks and runs."""
    return linear.kernel.chosen(MANY.name, Panels())


Scaled = Callable[[Panel, Expr, int, Expr, Expr], Expr]
"""scaled(panel, tile, vector, r, lane): a sum as float32."""


@dataclass(frozen=True)
class Sums:
    """What is summed in the panels of a run: its dtype, `value`, by which a sum becomes a result,
    the column vectors of a panel, and how many tiles of sums lie aside while others are made.
    """

    dtype: str
    value: Scaled
    vectors: int = PANEL
    rooms: int = 0

    def registers(self, columns: int) -> amx.Registers:
        """The tile registers of x and w beside the sums of a panel's columns."""
        if self.vectors > PANEL:
            return amx.Registers.one(self.vectors)
        return amx.Registers.of(1 if columns > PANEL else 2, columns)


FEW = 4
"""Row tiles whose sums and x stay near whatever comes between."""
LOW = amx.ROWS // 2
"""Rows for which tiles are made half as high: products, stores and scaling take half the time."""


@dataclass(frozen=True)
class Body:
    """How the sums of a panel are made: `chunk(panel, number, last)` adds a chunk of k; `apart`:
    the last chunk is not like the others. `few(panel, count, height)` makes those of a run of
    panels of all of k at once, where rows are `most` tiles at most; tiles have `height` rows.
    """

    chunk: Callable[[Panel, Expr, bool], None]
    apart: bool = False
    few: Callable[[Callable[[Expr], Panel], Expr, int], None] | None = None
    most: int = FEW


def emit_panels(
    linear: Linear,
    tiling: Tiling,
    steps: Steps,
    sums: Sums,
    body: Body,
    read: Read | None = None,
) -> None:
    """All rows and columns of a linear: x as tiles, then `body` for every chunk and panel of a run,
    then the run's results; `read` makes the elements of tiles where they are not those of x.
    """
    x = _tiled(linear, tiling, steps, read)
    blocks = -(-linear.columns // LANES)
    wide = min(blocks, max(1, sums.vectors // len(linear.offsets)))
    panels = -(-blocks // wide)
    longest = max(1, PANEL * panels_of(linear).run // sums.vectors)
    run = max(1, min(longest, panels // (4 * linear.kernel.isa.cores)))
    runs = -(-panels // run)

    _, most = tiling.most

    def emit(share: Share) -> None:
        linear, at, tiles = share.linear, share.run, share.tiles
        work = linear.kernel.work().within(at, 0, runs)
        # Two tiles more: what is stored before the first two are done.
        shape = (run, most + i64(2), wide * len(linear.offsets), amx.ROWS, LANES)
        held = amx.buffer(shape, sums.dtype)
        # Made here, not where it is used: at a kilobyte and more the workspace allocates it.
        rooms = max(sums.rooms, len(linear.offsets))
        aside = amx.buffer((rooms, amx.ROWS, LANES), "float32")
        first = bind(at * i64(run))
        count = bind(tirx.min(i64(panels) - first, i64(run)))

        def panel(place: Expr) -> Panel:
            group = bind(first + place)
            vectors = column_vectors(linear, group, wide)
            after = (first, bind(place + i64(1)), count)
            own = (tiling, share.base, tiles, share.rows, group)
            return Panel(linear, steps, x, vectors, held, aside, place, *own, after)

        columns = wide * len(linear.offsets)
        low = i64(LOW if body.few else 0)
        height = bind(tirx.Select(tirx.LE(share.rows, low), low, i64(amx.ROWS)))
        with amx.configured(steps.bytes, height, sums.registers(columns)):
            _over_panels(steps, body, panel, count, (tiles, share.rows))
        # Row tile by row tile: the columns of a run are a stretch of each row, which is also how a
        # residual is read. Panel by panel each row's line would come from a page of its own.
        with T.serial(i64(0), tiles) as tile, T.serial(i64(0), count) as place:
            _store_tile(panel(place), work.within(place, 0, run), tile, sums.value)

    tiling.over(runs, emit)


def _over_panels(
    steps: Steps,
    body: Body,
    panel: Callable[[Expr], Panel],
    count: Expr,
    size: tuple[Expr, Expr],
) -> None:
    """The sums of a run of `count` panels, of so many row tiles and rows."""
    tiles, rows = size

    def chunk(number: Expr, last: bool) -> None:
        with T.serial(i64(0), count) as place:
            body.chunk(panel(place), number, last)

    def chunks() -> None:
        alike = steps.chunks - body.apart
        if alike:
            with T.serial(i64(0), i64(alike)) as number:
                chunk(number, last=False)
        if body.apart:
            chunk(i64(alike), last=True)

    if body.few is None:
        return chunks()
    with T.If(tirx.LE(rows, i64(LOW))):
        with T.Then():
            body.few(panel, count, LOW)
        with T.Else(), T.If(tirx.LE(tiles, i64(body.most))):
            with T.Then():
                body.few(panel, count, amx.ROWS)
            with T.Else():
                chunks()


def column_vectors(linear: Linear, group: Expr, wide: int) -> tuple[tuple[int, Expr], ...]:
    """The column vectors of a panel by its number, as (offset, block)."""
    last = i64(-(-linear.columns // LANES) - 1)
    return tuple(
        (o, bind(tirx.min(group * i64(wide) + i64(c), last)))
        for o in linear.offsets
        for c in range(wide)
    )


def stored_blocks(linear: Linear, vectors: Sequence[tuple[int, Expr]]) -> tirx.Buffer:
    """Where the blocks of a panel's vectors lie among those of all weights, for loops over them."""
    blocks = T.alloc_buffer((len(vectors),), "int64")
    for v, (offset, block) in enumerate(vectors):
        T.buffer_store(blocks, linear.stored(block, offset), [i64(v)])
    return blocks


@dataclass(frozen=True)
class RowTile:
    """A tile of a share's rows that register tiles pass: its first run of rows, which lies in a
    tile of the tiling of its own, and how many runs, its first row, and the end of the share's.
    """

    first: Expr
    runs: Expr
    start: Expr
    end: Expr

    @staticmethod
    def of(share: Share, number: Expr, rows: int, run: int) -> RowTile:
        """The tile of a number, of so many rows in runs of so many."""
        height = rows // run
        first = bind(share.base + number * i64(height))
        start = bind(first * i64(run))
        end = bind(share.base * i64(run) + share.rows)
        return RowTile(
            first, bind(tirx.min(share.base + share.tiles - first, i64(height))), start, end
        )


def sums_of(sums: tirx.Buffer, vector: int) -> tirx.Buffer:
    """The sums of one column vector [row, lane], of those of a panel [vector, row, lane]."""
    rows = int(sums.shape[1])
    start = i64(vector * rows * LANES)
    return T.decl_buffer((rows, LANES), "float32", data=sums.data, elem_offset=start)


def _tiled(linear: Linear, tiling: Tiling, steps: Steps, read: Read | None) -> tirx.Buffer:
    """x as [chunk, tile, step, 16, size], with zeros where no row is and past the end of k."""
    tiles = tiling.tiles
    source = linear.kernel.places[linear.x].buffer
    dtype = "uint16" if steps.width == 2 else str(source.dtype)
    most, _ = tiling.most
    shape = (i64(steps.chunks), most, i64(steps.chunk), i64(amx.ROWS), i64(steps.size))
    made = amx.buffer(shape, dtype)
    zero = T.broadcast(const(0, dtype), steps.size)
    lanes = T.ramp(i64(0), i64(1), steps.size)
    with T.parallel(i64(0), tiles * i64(amx.ROWS)) as at:
        tile, r = bind(tirx.truncdiv(at, i64(amx.ROWS))), bind(tirx.truncmod(at, i64(amx.ROWS)))
        with T.If(tiling.has(at)):
            with T.Then():
                _tile_row(steps, read or _as_it_is(linear), made, tiling.index(at), (tile, r))
            with T.Else(), T.serial(i64(0), i64(steps.groups * steps.count)) as s:
                T.buffer_store(made, zero, [*steps.place(tile, s), r, lanes])
    return made


def _as_it_is(linear: Linear) -> Read:
    source = linear.kernel.places[linear.x].buffer
    grouped = len(linear.x.shape) > len(linear.rows) + 1
    return lambda row, g, part: source[(*row, *((g,) if grouped else ()), part)]


def _tile_row(
    steps: Steps, read: Read, made: tirx.Buffer, row: list[Expr], place: tuple[Expr, Expr]
) -> None:
    tile, r = place
    whole, rest = divmod(steps.length, steps.size)
    lanes = T.ramp(i64(0), i64(1), steps.size)
    with T.serial(i64(0), i64(steps.groups)) as g:
        if whole:
            with T.serial(i64(0), i64(whole)) as s:
                part = T.ramp(s * i64(steps.size), i64(1), steps.size)
                at_step = steps.place(tile, bind(g * i64(steps.count) + s))
                T.buffer_store(made, read(row, g, part), [*at_step, r, lanes])
        if rest:
            last = steps.place(tile, bind(g * i64(steps.count) + i64(whole)))
            zero = T.broadcast(const(0, str(made.dtype)), steps.size)
            T.buffer_store(made, zero, [*last, r, lanes])
            with T.serial(i64(0), i64(rest)) as i:
                value = read(row, g, i64(whole * steps.size) + i)
                T.buffer_store(made, value, [*last, r, i])


def _store_tile(panel: Panel, work: Work, tile: Expr, value: Scaled) -> None:
    """The epilogue of a row tile, column vector by column vector."""
    linear, start = panel.linear, panel.number(tile)
    end = bind(panel.base * i64(amx.ROWS) + panel.rows)
    for c in range(panel.wide):
        sides: dict[int, tirx.Buffer] = {}
        for i, o in enumerate(linear.offsets):
            sides[o] = panel.aside_at(i, "float32")
            with T.serial(i64(0), i64(amx.ROWS)) as r, vectorized(LANES) as lane:
                one = value(panel, tile, i * panel.wide + c, r, lane)
                T.buffer_store(sides[o], one, [r, lane])
        block = panel.vectors[c][1]
        store_rows(
            linear,
            work,
            sides,
            (start, amx.ROWS, end),
            block,
            within=panel.group * i64(panel.wide) + i64(c) if c else None,
        )


def plain(panel: Panel, tile: Expr, vector: int, r: Expr, lane: Expr) -> Expr:
    """A sum as it is."""
    return panel.sums[(*panel.row_of_sums(tile, vector, r), lane)]
