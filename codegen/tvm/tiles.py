"""The linear template by AMX tiles, for more rows than registers serve well.

x is laid out once as tiles: 16 rows by one step of k (64 bytes) lie together. Threads take panels
of columns, two vectors wide; in a panel, k goes in chunks whose weights stay in the first cache
while all rows pass. Sums of a panel wait in memory between chunks. Two forms:

- whole: a tile of sums runs over all of k. bfloat16, and bytes with one scale a row of w.
- groups: bytes or half bytes with a scale for each group of k. The codes of a chunk are unpacked
  once for all rows, without their offset; a group's sums leave the tile and are scaled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from . import amx
from .isa import LANES
from .linear import Linear, store_rows
from .loops import Work, flat_index
from .values import Expr, bind, const, i64, vectorized

CHUNK = 16
"""Steps of k in a chunk: 16 KiB of weights for each column vector of a panel."""

Value = Callable[[int, Expr, Expr], Expr]
"""value(vector, r, lane): a sum of the row tile at work, as float32."""


@dataclass(frozen=True)
class Steps:
    """How k is cut: `groups` of `length` elements, each of `count` steps of `size` elements of
    `width` bytes.
    """

    groups: int
    length: int
    size: int
    width: int

    @property
    def count(self) -> int:
        """Steps of a group; the last may be short and is filled with zeros."""
        return -(-self.length // self.size)

    @property
    def bytes(self) -> int:
        """Bytes of a step's row."""
        return self.size * self.width


@dataclass(frozen=True)
class Panel:
    """A panel at work: the linear, steps, tiles of x [tile, group, step, 16, size], the column
    vectors as (offset, block), and the sums [tile, vector, 16, 16].
    """

    linear: Linear
    steps: Steps
    x: tirx.Buffer
    vectors: tuple[tuple[int, Expr], ...]
    sums: tirx.Buffer
    tiles: Expr
    rows: Expr
    group: Expr

    @property
    def wide(self) -> int:
        """Column vectors for each offset."""
        return len(self.vectors) // len(self.linear.offsets)


Body = Callable[[Panel, Work], None]


def emit_panels(linear: Linear, rows: Expr, steps: Steps, sum_dtype: str, body: Body) -> None:
    """All rows and columns of a linear: x as tiles, then `body` for every panel of columns, which
    fills the panel's sums and stores its results.
    """
    tiles = bind(tirx.floordiv(rows + i64(amx.ROWS - 1), i64(amx.ROWS)))
    x = _tiled(linear, rows, steps, tiles)
    blocks = -(-linear.columns // LANES)
    wide = min(blocks, 2 if len(linear.offsets) == 1 else 1)
    last = i64(blocks - 1)
    panels = -(-blocks // wide)
    with T.parallel(i64(0), i64(panels)) as group:
        work = linear.kernel.work().within(group, 0, panels)
        vectors = tuple(
            (o, bind(tirx.min(group * i64(wide) + i64(c), last)))
            for o in linear.offsets
            for c in range(wide)
        )
        sums = amx.buffer((tiles, len(vectors), amx.ROWS, LANES), sum_dtype)
        with amx.configured(steps.bytes):
            body(Panel(linear, steps, x, vectors, sums, tiles, rows, group), work)


def _tiled(linear: Linear, rows: Expr, steps: Steps, tiles: Expr) -> tirx.Buffer:
    """x as [tile, group, step, 16, size], with zeros past the last row and past the end of k."""
    source = linear.kernel.places[linear.x].buffer
    shape = (tiles, i64(steps.groups), i64(steps.count), i64(amx.ROWS), i64(steps.size))
    made = amx.buffer(shape, str(source.dtype))
    zero = T.broadcast(const(0, str(source.dtype)), steps.size)
    lanes = T.ramp(i64(0), i64(1), steps.size)
    with T.parallel(i64(0), tiles * i64(amx.ROWS)) as at:
        tile, r = bind(tirx.floordiv(at, i64(amx.ROWS))), bind(tirx.floormod(at, i64(amx.ROWS)))
        with T.If(tirx.LT(at, rows)):
            with T.Then():
                _tile_row(linear, steps, source, made, at, (tile, r))
            with (
                T.Else(),
                T.serial(i64(0), i64(steps.groups)) as g,
                T.serial(i64(0), i64(steps.count)) as s,
            ):
                T.buffer_store(made, zero, [tile, g, s, r, lanes])
    return made


def _tile_row(
    linear: Linear,
    steps: Steps,
    source: tirx.Buffer,
    made: tirx.Buffer,
    at: Expr,
    place: tuple[Expr, Expr],
) -> None:
    tile, r = place
    row = flat_index(linear.kernel.work(), at, linear.rows)
    grouped = len(linear.x.shape) > len(linear.rows) + 1
    whole, rest = divmod(steps.length, steps.size)
    lanes = T.ramp(i64(0), i64(1), steps.size)
    with T.serial(i64(0), i64(steps.groups)) as g:
        index = (*row, g) if grouped else tuple(row)
        if whole:
            with T.serial(i64(0), i64(whole)) as s:
                part = T.ramp(s * i64(steps.size), i64(1), steps.size)
                T.buffer_store(made, source[(*index, part)], [tile, g, s, r, lanes])
        if rest:
            zero = T.broadcast(const(0, str(source.dtype)), steps.size)
            T.buffer_store(made, zero, [tile, g, i64(whole), r, lanes])
            with T.serial(i64(0), i64(rest)) as i:
                value = source[(*index, i64(whole * steps.size) + i)]
                T.buffer_store(made, value, [tile, g, i64(whole), r, i])


def _store_tile(panel: Panel, work: Work, tile: Expr, value: Value) -> None:
    """The epilogue of a row tile, column vector by column vector."""
    linear, start = panel.linear, bind(tile * i64(amx.ROWS))
    for c in range(panel.wide):
        sides: dict[int, tirx.Buffer] = {}
        for i, o in enumerate(linear.offsets):
            sides[o] = T.alloc_buffer((amx.ROWS, LANES), "float32")
            with T.serial(i64(0), i64(amx.ROWS)) as r, vectorized(LANES) as lane:
                T.buffer_store(sides[o], value(i * panel.wide + c, r, lane), [r, lane])
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

    def body(panel: Panel, work: Work) -> None:
        _whole(panel, work, kind, value)

    emit_panels(linear, rows, steps, "float32" if kind == "tdpbf16ps" else "int32", body)


Scaled = Callable[[Panel, Expr, int, Expr, Expr], Expr]
"""scaled(panel, tile, vector, r, lane): a sum as float32."""


def plain(panel: Panel, tile: Expr, vector: int, r: Expr, lane: Expr) -> Expr:
    """A sum as it is."""
    return panel.sums[tile, i64(vector), r, lane]


def _whole(panel: Panel, work: Work, kind: str, value: Scaled) -> None:
    depth = panel.linear.depth
    whole, short = divmod(depth, amx.ROWS)
    tail = _tail(panel, whole, short) if short else None
    last = max(0, -(-whole // CHUNK) - 1)
    if last:
        with T.serial(i64(0), i64(last)) as chunk:
            span = (chunk * i64(CHUNK), chunk * i64(CHUNK) + i64(CHUNK))

            def more(tile: Expr, count: int) -> None:
                _block(panel, kind, (tile, count), span, tirx.EQ(chunk, i64(0)), None)

            _over_tiles(panel, more)

    def finish(tile: Expr, count: int) -> None:
        span = (i64(last * CHUNK), i64(whole))
        _block(panel, kind, (tile, count), span, None if last else True, tail)
        for i in range(count):
            at = bind(tile + i64(i))
            _store_tile(panel, work, at, lambda v, r, lane, at=at: value(panel, at, v, r, lane))

    _over_tiles(panel, finish)


def _over_tiles(panel: Panel, block: Callable[[Expr, int], None]) -> None:
    """block(first tile, count) over all row tiles, by twos where registers allow."""
    if len(panel.vectors) > 2:
        with T.serial(i64(0), panel.tiles) as t:
            block(t, 1)
        return
    with T.serial(i64(0), tirx.floordiv(panel.tiles, i64(2))) as t:
        block(bind(t * i64(2)), 2)
    with T.If(tirx.EQ(tirx.floormod(panel.tiles, i64(2)), i64(1))), T.Then():
        block(bind(panel.tiles - i64(1)), 1)


def _block(
    panel: Panel,
    kind: str,
    tiles: tuple[Expr, int],
    span: tuple[Expr, Expr],
    start: Expr | bool | None,
    tail: tirx.Buffer | None,
) -> None:
    """Sums of `count` row tiles by all vectors over a span of steps; `start`: whether they begin at
    zero, True for always and None for never.
    """
    first, count = tiles
    columns = len(panel.vectors)
    sums = [(i, v, i * columns + v) for i in range(count) for v in range(columns)]
    register = amx.Registers.of(count, columns)
    _begin(panel, first, sums, start)
    with T.serial(*span) as s:
        _products(panel, kind, register, first, s, lambda v: _step_weights(panel, v, s))
    if tail is not None:
        at = i64(panel.steps.count - 1)
        tails = [tail[i64(v), i64(0), i64(0)] for v in range(columns)]
        _products(panel, kind, register, first, at, tails.__getitem__)
    for i, v, t in sums:
        amx.store(t, panel.sums[first + i64(i), i64(v), i64(0), i64(0)])


def _begin(
    panel: Panel, first: Expr, sums: list[tuple[int, int, int]], start: Expr | bool | None
) -> None:
    def zero() -> None:
        for _, _, t in sums:
            amx.zero(t)

    def load() -> None:
        for i, v, t in sums:
            amx.load(t, panel.sums[first + i64(i), i64(v), i64(0), i64(0)])

    if start is True:
        return zero()
    if start is None:
        return load()
    with T.If(start):
        with T.Then():
            zero()
        with T.Else():
            load()


def _step_weights(panel: Panel, vector: int, step: Expr) -> Expr:
    offset, block = panel.vectors[vector]
    w = panel.linear.kernel.places[panel.linear.codes].buffer
    at = step * i64(amx.ROWS)
    return w[block + i64(offset // LANES), at, i64(0), i64(0)]


def _products(
    panel: Panel,
    kind: str,
    register: amx.Registers,
    first: Expr,
    step: Expr,
    weights: Callable[[int], Expr],
) -> None:
    columns = len(panel.vectors)
    for i, x in enumerate(register.x):
        amx.load(x, panel.x[first + i64(i), i64(0), step, i64(0), i64(0)])
        for v, w in enumerate(register.w):
            if i == 0:
                amx.load(w, weights(v))
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
                at = (block + i64(offset // LANES), i64(whole * amx.ROWS + r))
                value = w[(*at, i64(0), T.ramp(i64(0), i64(1), width))]
            T.buffer_store(buffer, value, [i64(v), i64(r), lanes])
    return buffer


# -- groups


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
    tiles = bind(tirx.floordiv(rows + i64(amx.ROWS - 1), i64(amx.ROWS)))
    factors = _factors(linear, rows, steps, tiles, codes)

    def body(panel: Panel, work: Work) -> None:
        _groups(panel, work, codes, factors)

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


def _groups(panel: Panel, work: Work, codes: Codes, factors: tirx.Buffer) -> None:
    steps = panel.steps
    size = steps.count * steps.size * LANES
    chunk = min(steps.groups, max(1, CHUNK * 1024 // size))
    shape = (len(panel.vectors), chunk, steps.count, steps.size // 4, 4 * LANES)
    held = amx.buffer(shape, "int8")
    chunks = -(-steps.groups // chunk)
    with T.serial(i64(0), i64(chunks)) as c:
        low = bind(c * i64(chunk))
        count = bind(tirx.min(i64(steps.groups) - low, i64(chunk)))
        for v in range(len(panel.vectors)):
            with T.serial(i64(0), count) as g:
                _unpack(panel, codes, held, v, low, g)
        with T.serial(i64(0), panel.tiles) as tile:
            for v in range(len(panel.vectors)):
                _scaled_groups(panel, codes, factors, held, (v, tile, low, count, c))
            with T.If(tirx.EQ(c, i64(chunks - 1))), T.Then():
                _store_tile(panel, work, tile, lambda v, r, lane: plain(panel, tile, v, r, lane))


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
    steps, lanes = panel.steps, T.ramp(0, 1, LANES)
    totals = [T.alloc_buffer((LANES,), "float32") for _ in range(amx.ROWS)]
    with T.If(tirx.EQ(chunk, i64(0))):
        with T.Then():
            for total in totals:
                T.buffer_store(total, T.broadcast(const(0, "float32"), LANES), [lanes])
        with T.Else():
            for r, total in enumerate(totals):
                T.buffer_store(total, panel.sums[tile, i64(v), i64(r), lanes], [lanes])
    whole = amx.buffer((amx.ROWS, LANES), "int32")
    with T.serial(i64(0), count) as g:
        at = bind(low + g)
        amx.zero(amx.SUMS[0])
        with T.serial(i64(0), i64(steps.count)) as s:
            amx.load(amx.X[0], panel.x[tile, at, s, i64(0), i64(0)], steps.size)
            amx.load(amx.W[0], held[i64(v), g, s, i64(0), i64(0)])
            amx.multiply("tdpbssd", amx.SUMS[0], amx.X[0], amx.W[0])
        amx.store(amx.SUMS[0], whole[i64(0), i64(0)])
        scale = codes.scale(panel, v, at)
        for r, total in enumerate(totals):
            both = scale * T.broadcast(factors[tile, at, i64(r)], LANES)
            value = tirx.Cast(f"float32x{LANES}", whole[i64(r), lanes])
            T.buffer_store(total, total[lanes] + value * both, [lanes])
    for r, total in enumerate(totals):
        T.buffer_store(panel.sums, total[lanes], [tile, i64(v), i64(r), lanes])
