"""The linear template by AMX tiles, for more rows than registers serve well.

x is laid out once as tiles: 16 rows by one step of k (64 bytes) lie together. A panel is two
vectors of columns; k goes in chunks. The weights of a panel's chunk stay in the first cache while
all rows pass; the rows' chunk stays in the second while the panels of a run pass; the sums of a
run wait there between chunks. Threads take runs. Three forms:

- whole: a tile of sums runs over all of k. bfloat16, and bytes with one scale a row of w.
- groups (tiled_groups.py): codes with a scale for each group of k, multiplied as whole numbers; a
  group's sums leave the tile and are scaled.
- widened (tiled_codes.py): the same, multiplied as bfloat16 with their scales.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from . import amx
from .isa import LANES
from .linear import Linear, store_rows
from .loops import Work, flat_index
from .row_tiles import MANY, Panels
from .values import Expr, bind, const, i64, vectorized

PANEL = 2
"""Column vectors of a panel whose weights are loaded for two row tiles at once."""


@dataclass(frozen=True)
class Steps:
    """How k is cut: `groups` of `length` elements, each of `count` steps of `size` elements of
    `width` bytes. `together`: a chunk holds whole groups; `cut`: the steps that it holds else.
    """

    groups: int
    length: int
    size: int
    width: int
    together: bool = False
    cut: int = Panels().chunk

    @property
    def count(self) -> int:
        """Steps of a group; the last may be short and is filled with zeros."""
        return -(-self.length // self.size)

    @property
    def bytes(self) -> int:
        """Bytes of a step's row."""
        return self.size * self.width

    @property
    def chunk(self) -> int:
        """Steps of a chunk."""
        if not self.together:
            return self.cut
        within = self.cut * amx.ROW_BYTES // (self.count * self.bytes)
        return self.count * min(self.groups, max(1, within))

    @property
    def chunks(self) -> int:
        """Chunks of all of k."""
        return max(1, -(-self.groups * self.count // self.chunk))

    def place(self, tile: Expr, step: Expr) -> list[Expr]:
        """Where a tile of x begins, of all groups' steps in a row; but for its rows."""
        chunk = i64(self.chunk)
        return [tirx.floordiv(step, chunk), tile, tirx.floormod(step, chunk)]


@dataclass(frozen=True)
class Panel:
    """A panel at work: the linear, steps, tiles of x [chunk, tile, step, 16, size], the column
    vectors as (offset, block), the sums [place, tile, vector, 16, 16] with its place in them, and
    room [number, 16, 16] for what leaves tiles.
    """

    linear: Linear
    steps: Steps
    x: tirx.Buffer
    vectors: tuple[tuple[int, Expr], ...]
    sums: tirx.Buffer
    aside: tirx.Buffer
    place: Expr
    tiles: Expr
    rows: Expr
    group: Expr

    @property
    def wide(self) -> int:
        """Column vectors for each offset."""
        return len(self.vectors) // len(self.linear.offsets)

    def stored(self) -> list[Expr]:
        """Where the blocks of its vectors lie among those of all weights."""
        return [bind(self.linear.stored(block, offset)) for offset, block in self.vectors]

    def aside_at(self, number: Expr | int, dtype: str) -> tirx.Buffer:
        """One of the rooms of 16 rows aside, for elements of 4 bytes."""
        place = i64(number) if isinstance(number, int) else number
        start = place * i64(amx.ROWS * LANES)
        rows = (amx.ROWS, LANES)
        return T.decl_buffer(rows, dtype, data=self.aside.data, elem_offset=start)

    def row_of_sums(self, tile: Expr, vector: int, r: Expr | int = 0) -> list[Expr]:
        """The index of a row of sums, but for its lane."""
        return [self.place, tile, i64(vector), i64(r)]


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


@dataclass(frozen=True)
class Body:
    """How the sums of a panel are made: `chunk(panel, number, last)` adds a chunk of k; `apart`:
    the last chunk is not like the others. `few(panel)` makes them of all of k at once, where rows
    are FEW tiles at most.
    """

    chunk: Callable[[Panel, Expr, bool], None]
    apart: bool = False
    few: Callable[[Panel], None] | None = None


FEW = 4
"""Row tiles whose sums and x stay near whatever comes between."""


def emit_panels(
    linear: Linear,
    rows: Expr,
    steps: Steps,
    sums: Sums,
    body: Body,
    read: Read | None = None,
) -> None:
    """All rows and columns of a linear: x as tiles, then `body` for every chunk and panel of a run,
    then the run's results; `read` makes the elements of tiles where they are not those of x.
    """
    tiles = bind(tirx.floordiv(rows + i64(amx.ROWS - 1), i64(amx.ROWS)))
    x = _tiled(linear, rows, steps, tiles, read)
    blocks = -(-linear.columns // LANES)
    wide = min(blocks, max(1, sums.vectors // len(linear.offsets)))
    panels = -(-blocks // wide)
    most = max(1, PANEL * panels_of(linear).run // sums.vectors)
    run = max(1, min(most, panels // (4 * linear.kernel.isa.cores)))
    runs = -(-panels // run)
    with T.parallel(i64(0), i64(runs)) as at:
        work = linear.kernel.work().within(at, 0, runs)
        shape = (run, tiles, wide * len(linear.offsets), amx.ROWS, LANES)
        held = amx.buffer(shape, sums.dtype)
        # Made here, not where it is used: at a kilobyte and more the workspace allocates it.
        rooms = max(sums.rooms, len(linear.offsets))
        aside = amx.buffer((rooms, amx.ROWS, LANES), "float32")
        first = bind(at * i64(run))
        count = bind(tirx.min(i64(panels) - first, i64(run)))

        def panel(place: Expr) -> Panel:
            group = bind(first + place)
            vectors = _vectors(linear, group, wide)
            return Panel(linear, steps, x, vectors, held, aside, place, tiles, rows, group)

        columns = wide * len(linear.offsets)
        with amx.configured(steps.bytes, roles=sums.registers(columns)):
            _over_panels(steps, body, panel, count, tiles)
        # Row tile by row tile: the columns of a run are a stretch of each row, which is also how a
        # residual is read. Panel by panel each row's line would come from a page of its own.
        with T.serial(i64(0), tiles) as tile, T.serial(i64(0), count) as place:
            _store_tile(panel(place), work.within(place, 0, run), tile, sums.value)


def _over_panels(
    steps: Steps, body: Body, panel: Callable[[Expr], Panel], count: Expr, tiles: Expr
) -> None:
    """The sums of a run of `count` panels."""

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
    with T.If(tirx.LE(tiles, i64(FEW))):
        with T.Then(), T.serial(i64(0), count) as place:
            body.few(panel(place))
        with T.Else():
            chunks()


def _vectors(linear: Linear, group: Expr, wide: int) -> tuple[tuple[int, Expr], ...]:
    last = i64(-(-linear.columns // LANES) - 1)
    return tuple(
        (o, bind(tirx.min(group * i64(wide) + i64(c), last)))
        for o in linear.offsets
        for c in range(wide)
    )


def _tiled(linear: Linear, rows: Expr, steps: Steps, tiles: Expr, read: Read | None) -> tirx.Buffer:
    """x as [chunk, tile, step, 16, size], with zeros past the last row and past the end of k."""
    source = linear.kernel.places[linear.x].buffer
    dtype = "uint16" if steps.width == 2 else str(source.dtype)
    shape = (i64(steps.chunks), tiles, i64(steps.chunk), i64(amx.ROWS), i64(steps.size))
    made = amx.buffer(shape, dtype)
    zero = T.broadcast(const(0, dtype), steps.size)
    lanes = T.ramp(i64(0), i64(1), steps.size)
    with T.parallel(i64(0), tiles * i64(amx.ROWS)) as at:
        tile, r = bind(tirx.floordiv(at, i64(amx.ROWS))), bind(tirx.floormod(at, i64(amx.ROWS)))
        with T.If(tirx.LT(at, rows)):
            with T.Then():
                row = flat_index(linear.kernel.work(), at, linear.rows)
                _tile_row(steps, read or _as_it_is(linear), made, row, (tile, r))
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
    linear, start = panel.linear, bind(tile * i64(amx.ROWS))
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
            (start, amx.ROWS, panel.rows),
            block,
            within=panel.group * i64(panel.wide) + i64(c) if c else None,
        )


# -- whole rows


def emit_whole(linear: Linear, rows: Expr, kind: str, steps: Steps, value: Scaled) -> None:
    """A linear whose tiles of sums run over all of k, by the instruction `kind`."""
    steps = replace(steps, cut=panels_of(linear).chunk)
    cut = i64(steps.cut)
    whole, short = divmod(linear.depth, amx.ROWS)

    def add_chunk(panel: Panel, chunk: Expr, last: bool) -> None:
        tail = _tail(panel, whole, short) if last and short else None
        low = bind(chunk * cut)
        span = (low, i64(whole) if last else bind(low + cut))
        start: Expr | bool | None = tirx.EQ(chunk, i64(0))
        if last:
            start = True if steps.chunks == 1 else None

        def block(tile: Expr, count: int) -> None:
            add_steps(panel, kind, (tile, count), span, start, _packed_weights(panel), tail)

        over_tiles(panel, block)

    dtype = "float32" if kind == "tdpbf16ps" else "int32"
    emit_panels(linear, rows, steps, Sums(dtype, value), Body(add_chunk, apart=True))


def plain(panel: Panel, tile: Expr, vector: int, r: Expr, lane: Expr) -> Expr:
    """A sum as it is."""
    return panel.sums[(*panel.row_of_sums(tile, vector, r), lane)]


def over_tiles(panel: Panel, block: Callable[[Expr, int], None]) -> None:
    """block(first tile, count) over all row tiles, by twos where registers allow."""
    if len(panel.vectors) > 2:
        with T.serial(i64(0), panel.tiles) as t:
            block(t, 1)
        return
    with T.serial(i64(0), tirx.floordiv(panel.tiles, i64(2))) as t:
        block(bind(t * i64(2)), 2)
    with T.If(tirx.EQ(tirx.floormod(panel.tiles, i64(2)), i64(1))), T.Then():
        block(bind(panel.tiles - i64(1)), 1)


Weights = Callable[[int, Expr], Expr]
"""weights(vector, step): the element where a step's tile of w begins."""


def add_steps(
    panel: Panel,
    kind: str,
    tiles: tuple[Expr, int],
    span: tuple[Expr, Expr],
    start: Expr | bool | None,
    weights: Weights,
    tail: tirx.Buffer | None = None,
) -> None:
    """Add a span of steps to the sums of `tiles` (the first row tile and how many) by all vectors,
    and after them a last, short step by the weights of `tail`; `start`: whether the sums begin at
    zero, True for always and None for never.
    """
    first, count = tiles
    columns = len(panel.vectors)
    sums = [(i, v, i * columns + v) for i in range(count) for v in range(columns)]
    register = amx.Registers.of(count, columns)
    _begin_sums(panel, first, sums, start)
    with T.serial(*span) as s:
        _add_products(panel, kind, register, first, s, weights)
    if tail is not None:
        at = i64(panel.steps.count - 1)
        _add_products(panel, kind, register, first, at, lambda v, _: tail[i64(v), i64(0), i64(0)])
    for i, v, t in sums:
        amx.store(t, panel.sums[(*panel.row_of_sums(first + i64(i), v), i64(0))])


def _begin_sums(
    panel: Panel, first: Expr, sums: list[tuple[int, int, int]], start: Expr | bool | None
) -> None:
    def zero() -> None:
        for _, _, t in sums:
            amx.zero(t)

    def load() -> None:
        for i, v, t in sums:
            amx.load(t, panel.sums[(*panel.row_of_sums(first + i64(i), v), i64(0))])

    if start is True:
        return zero()
    if start is None:
        return load()
    with T.If(start):
        with T.Then():
            zero()
        with T.Else():
            load()


def _packed_weights(panel: Panel) -> Weights:
    """Where tiles of weights lie in the packed weight itself."""
    w = panel.linear.kernel.places[panel.linear.codes].buffer

    def first(vector: int, step: Expr) -> Expr:
        offset, block = panel.vectors[vector]
        return w[panel.linear.stored(block, offset), step * i64(amx.ROWS), i64(0), i64(0)]

    return first


def _add_products(
    panel: Panel,
    kind: str,
    register: amx.Registers,
    first: Expr,
    step: Expr,
    weights: Weights,
) -> None:
    """Add one step's products to the tiles of sums, of x from the row tile `first` on."""
    columns = len(panel.vectors)
    for i, x in enumerate(register.x):
        amx.load(x, panel.x[(*panel.steps.place(first + i64(i), step), i64(0), i64(0))])
        for v, w in enumerate(register.w):
            if i == 0:
                amx.load(w, weights(v, step))
            amx.multiply(kind, i * columns + v, x, w)


def _tail(panel: Panel, whole: int, short: int) -> tirx.Buffer:
    """The last, short step of each vector's weights, filled up with zeros."""
    linear = panel.linear
    w = linear.kernel.places[linear.codes].buffer
    width = LANES * linear.layout.depth
    buffer = amx.buffer((len(panel.vectors), amx.ROWS, width), str(w.dtype))
    lanes, zero = T.ramp(i64(0), i64(1), width), const(0, str(w.dtype))
    for v, (offset, block) in enumerate(panel.vectors):
        for r in range(amx.ROWS):
            value = T.broadcast(zero, width)
            if r < short:
                at = (linear.stored(block, offset), i64(whole * amx.ROWS + r))
                value = w[(*at, i64(0), T.ramp(i64(0), i64(1), width))]
            T.buffer_store(buffer, value, [i64(v), i64(r), lanes])
    return buffer
