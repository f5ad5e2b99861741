"""The linear template: y[t, n] = epilogue(sum_k prologue(x)[t, k] w[n, k] + b[n]) over packed
weights, whatever a scheme makes its sums of.

Weights lie in blocks of 16 columns. Blocks are shared out among the threads, each streaming its own
part of the weights once; rows go through register tiles inside a block, where x stays in cache.
Three variants by the number of rows: one, few, many. The sums are those of floats.py and
quantized.py; tiles.py has another way for many rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...ir.dims import Shape, product
from ...ir.node import Node
from ..backend import Layout
from .epilogues import fused_behind
from .function import Kernel
from .isa import LANES, Tile
from .loops import Place, Work, flat_index, over_rows
from .row_tiles import variants
from .values import Expr, bind, cast, const, i64, vectorized

PARALLEL_FROM = 1 << 18
"""Multiplications from which a linear goes to all threads."""


@dataclass(frozen=True)
class Scheme:
    """How a kind of linear sums: its row tiles (one, few, many), the loops over k that fill a
    tile's sums, and which inputs come before the bias; `by_tiles` does more than
    `tiles_above` rows, where the target has tile registers. `some` is the most rows, more than
    few's, that another tile takes by itself, and that tile: it may be few's, more than once.
    `tiled` does rows as a tiling lays them out in tile registers, rows of many weights too.
    """

    tiles: tuple[Tile, Tile, Tile]
    over_depth: Callable[[Linear, Tile, Sums, list[Expr], list[list[Expr]]], None]
    bias_from: int = 2
    by_tiles: Callable[[Linear, Expr], None] | None = None
    tiles_above: int = 0
    some: tuple[int, Tile] | None = None
    tiled: Callable[[Linear, Tiling], None] | None = None


@dataclass(frozen=True)
class Route:
    """Which rows go to whose weights: `row(n)` is the n-th row of a tile's numbering, `expert` the
    place of its weights in a stack of them, of `blocks` blocks of columns each.
    """

    row: Callable[[Expr], Expr]
    expert: Expr
    blocks: int


class Tiling(Protocol):
    """Rows as they lie in the tiles of tile registers. A row's number is its place there, tile
    after tile of sixteen rows each; at some places there is no row.
    """

    @property
    def tiles(self) -> Expr:
        """How many tiles there are."""
        ...

    @property
    def most(self) -> tuple[Expr, Expr]:
        """How many tiles there are at most, and how many of a share's rows, by the dims alone: by
        what is read on the way no memory can be sized.
        """
        ...

    def has(self, number: Expr) -> Expr:
        """Whether there is a row at a place."""
        ...

    def index(self, number: Expr) -> list[Expr]:
        """Where x has the row at a place; where there is none it is that of another one."""
        ...

    def over(self, runs: int, body: Callable[[Share], None]) -> None:
        """body(share) for all rows by all of so many runs of columns, shared out among threads."""
        ...


@dataclass(frozen=True)
class Share:
    """The rows of a tiling that go by the same weights, and a run of columns: the linear that knows
    the weights, the first of the rows' tiles, how many these are, and how many the rows.
    """

    linear: Linear
    run: Expr
    base: Expr
    tiles: Expr
    rows: Expr


def _same(at: list[Expr]) -> list[Expr]:
    return at


@dataclass(frozen=True)
class Linear:
    """One packed_linear of a kernel: operands, sizes, and the column groups that its results
    combine.

    `offsets` are the distances, in columns, between a result's column and the columns of y that
    it needs: (0,) for a plain linear, (0, F) where gate and up lie one after the other.
    `columns` is the width of the results. With a `route` rows are taken in its order, by one of
    many weights; `x_row` is where x has what belongs to a row of the result. Weights that are
    read once, in the order in which they lie in memory, pass `streams` rows each; 0: they are not.
    With `after` each read of a group asks for another block's, so many groups further on.
    """

    kernel: Kernel
    node: Node
    x: Node
    layout: Layout
    results: Mapping[Node, Place]
    offsets: tuple[int, ...]
    columns: int
    scheme: Scheme
    route: Route | None = None
    x_row: Callable[[list[Expr]], list[Expr]] = _same
    streams: int = 0
    after: tuple[Expr, Expr] | None = None

    def row(self, number: Expr) -> Expr:
        """A row by its number in the order in which rows are taken."""
        return number if self.route is None else bind(self.route.row(number))

    def stored(self, block: Expr, offset: int = 0) -> Expr:
        """Where the block `offset` columns behind a block lies among those of all weights."""
        place = self._in_turn(block, offset)
        if self.route is None:
            return place
        return bind(self.route.expert * i64(self.route.blocks) + place)

    def _in_turn(self, block: Expr, offset: int) -> Expr:
        sides = self.layout.sides
        side = int(self.node["n"]) // LANES // sides
        if sides == 1:
            return block + i64(offset // LANES)
        if self.columns <= side * LANES:  # no block crosses from its side into the next
            number, behind = divmod(offset // LANES, side)
            return (block + i64(behind)) * i64(sides) + i64(number)
        at = bind(block + i64(offset // LANES))
        return tirx.floormod(at, i64(side)) * i64(sides) + tirx.floordiv(at, i64(side))

    @property
    def rows(self) -> Shape:
        """The shape of the rows."""
        return self.node.shape[:-1]

    @property
    def codes(self) -> Node:
        """The packed weight, or its codes."""
        return self.node.inputs[2 if self.node.op.name.startswith("packed_integer") else 1]

    @property
    def depth(self) -> int:
        """Steps over k, or over pairs of k."""
        return -(-int(self.x.shape[-1]) // self.layout.depth)

    @property
    def sum_dtype(self) -> str:
        """The type that sums are gathered in."""
        return "float64" if self.node.dtype == "f64" else "float32"


def emit_scheme(
    kernel: Kernel,
    node: Node,
    x: Node,
    layout: Layout,
    results: Mapping[Node, Place],
    scheme: Scheme,
) -> None:
    """Emit a linear whose sums are made as a scheme says, from the operand x."""
    linear, done = with_epilogue(kernel, node, x, layout, results, scheme)
    _emit_variants(linear)
    kernel.places.update(done)


def _emit_variants(linear: Linear) -> None:
    rows, count = linear.kernel.dims.expr(product(linear.rows)), product(linear.rows)
    by_tiles = linear.scheme.by_tiles
    above = linear.scheme.tiles_above if by_tiles is not None else None
    scheme = linear.scheme
    limited, many = variants(linear.kernel, scheme.tiles, above, scheme.some)
    if isinstance(count, int):
        limited = [(limit, tile) for limit, tile in limited if count <= limit][:1]

    def by_size(left: Sequence[tuple[int, Tile]]) -> None:
        if not left:
            return _variant(linear, many, rows) if by_tiles is None else by_tiles(linear, rows)
        limit, tile = left[0]
        if isinstance(count, int):
            return _variant(linear, tile, rows)
        with T.If((tirx.EQ if limit == 1 else tirx.LE)(rows, i64(limit))):
            with T.Then():
                _variant(linear, tile, rows)
            with T.Else():
                by_size(left[1:])

    by_size(limited)


# -- epilogue


def with_epilogue(
    kernel: Kernel,
    node: Node,
    x: Node,
    layout: Layout,
    results: Mapping[Node, Place],
    scheme: Scheme,
) -> tuple[Linear, dict[Node, Place]]:
    """The linear with the results fused behind it, or with its own value as the result; and what
    is done once it is emitted.
    """
    left = {n: p for n, p in results.items() if kernel.places.get(n) is not p}
    if found := fused_behind(kernel, node, left):
        fused, offsets = found
        width = int(next(iter(fused)).shape[-1])
        return Linear(kernel, node, x, layout, fused, offsets, width, scheme), left
    place = results[node] if node in results else kernel.scratch(node)
    kernel.places.pop(node, None)
    width = int(node.shape[-1])
    return Linear(kernel, node, x, layout, {node: place}, (0,), width, scheme), {node: place}


# -- loops


def _variant(linear: Linear, tile: Tile, rows: Expr) -> None:
    """All column blocks, for a row tile; threads take runs of blocks."""
    blocks = -(-linear.columns // LANES)
    columns = min(max(1, tile.columns // len(linear.offsets)), blocks)
    tile = replace(tile, columns=columns)
    groups = -(-blocks // columns)
    work = linear.kernel.work()
    inner = product(linear.x.shape[len(linear.rows) :])
    size = inner * linear.columns * len(linear.offsets) * tile.rows
    many = tile.rows > linear.scheme.tiles[1].rows
    spread = replace(work, parallel=size >= PARALLEL_FROM or many)

    def group(inside: Work, at: list[Expr]) -> None:
        _row_tiles(linear, inside, tile, at[0], rows)

    over_rows(spread, (groups,), 1 << 20, group, always=True)


def _row_tiles(linear: Linear, work: Work, tile: Tile, group: Expr, rows: Expr) -> None:
    if tile.rows == 1:
        return emit_tile(linear, work, tile, group, i64(0), rows)
    tiles = tirx.floordiv(rows + i64(tile.rows - 1), i64(tile.rows))
    with T.serial(i64(0), tiles) as r:
        emit_tile(linear, work.within(r, 0, tiles), tile, group, r * i64(tile.rows), rows)


@dataclass(frozen=True)
class Sums:
    """The accumulators of a tile, by (offset, row, column vector)."""

    parts: Mapping[tuple[int, int, int], list[tirx.Buffer]]

    def joined(self, key: tuple[int, int, int]) -> tirx.Buffer:
        """One buffer of a key's partial sums, added up into the first."""
        first, *more = self.parts[key]
        for p in more:
            with vectorized(LANES) as v:
                T.buffer_store(first, first[v] + p[v], [v])
        return first


def emit_tile(linear: Linear, work: Work, tile: Tile, group: Expr, start: Expr, rows: Expr) -> None:
    """One register tile of the rows from `start` on, of `rows` in all: sums over k, then the
    epilogue of each row and column vector.
    """
    last_block = i64(-(-linear.columns // LANES) - 1)
    block = [
        bind(tirx.min(group * i64(tile.columns) + i64(c), last_block)) for c in range(tile.columns)
    ]
    row = [linear.row(bind(tirx.min(start + i64(r), rows - i64(1)))) for r in range(tile.rows)]
    keys = [
        (o, r, c) for o in linear.offsets for r in range(tile.rows) for c in range(tile.columns)
    ]
    sums = Sums({key: [_zeros(linear) for _ in range(tile.unroll)] for key in keys})
    at = [linear.x_row(flat_index(work, e, linear.rows)) for e in row]
    for part, mine in _streams(linear, tile, sums):
        linear.scheme.over_depth(part, tile, mine, block, at)
    sides = {
        (o, c): _set_aside(sums, tile, o, c) for o in linear.offsets for c in range(tile.columns)
    }
    for c in range(tile.columns):
        mine = {o: sides[o, c] for o in linear.offsets}
        place = group * i64(tile.columns) + i64(c) if c else None
        store_rows(linear, work, mine, (start, tile.rows, rows), block[c], within=place)


def _streams(linear: Linear, tile: Tile, sums: Sums) -> list[tuple[Linear, Sums]]:
    """What is summed at a time: where a tile has one column vector those of each offset, one after
    another, each as it lies in memory, for several rows with few registers only if they have no
    room for the sums of all; else all, several streams where it has one row.
    """
    isa = linear.kernel.isa
    if tile.rows == 1 and tile.columns > 1:
        return [(replace(linear, streams=1), sums)]
    fit = isa.registers < 32 and 2 * len(sums.parts) < isa.registers
    if tile.columns > 1 or (tile.rows > 1 and fit):
        return [(linear, sums)]
    return [
        (
            replace(linear, offsets=(o,), streams=tile.rows),
            Sums({key: parts for key, parts in sums.parts.items() if key[0] == o}),
        )
        for o in linear.offsets
    ]


def store_rows(
    linear: Linear,
    work: Work,
    sums: Mapping[int, tirx.Buffer],
    span: tuple[Expr, int, Expr],
    block: Expr,
    *,
    within: Expr | None,
) -> None:
    """The results of `count` rows from `start` on, of `rows` in all, in one column vector; none of
    them where `within`, if given, is past the last block.
    """
    start, count, rows = span
    last = i64(-(-linear.columns // LANES) - 1)
    held = tirx.LE(i64(0) if within is None else within, last)
    with (
        _guard(held, needed=within is not None),
        T.serial(i64(0), tirx.min(rows - start, i64(count))) as r,
    ):
        inside = work.within(r, 0, count)
        index = flat_index(inside, linear.row(bind(start + r)), linear.rows)
        _store(linear, inside, sums, r, index, block)


def _set_aside(sums: Sums, tile: Tile, offset: int, column: int) -> tirx.Buffer:
    """The sums of a column vector in memory: the epilogue is one loop over the rows, not code
    for each of them; and indexed by a variable, the accumulators themselves would leave their
    registers.
    """
    buffer = T.alloc_buffer((tile.rows, LANES), str(sums.parts[offset, 0, column][0].dtype))
    for r in range(tile.rows):
        joined = sums.joined((offset, r, column))
        with vectorized(LANES) as v:
            T.buffer_store(buffer, joined[v], [r, v])
    return buffer


class _guard:
    """`if condition`, or nothing where it always holds."""

    def __init__(self, condition: Expr, *, needed: bool) -> None:
        self.frames = [T.If(condition), T.Then()] if needed else []

    def __enter__(self) -> None:
        for f in self.frames:
            f.__enter__()

    def __exit__(self, *error: object) -> None:
        for f in reversed(self.frames):
            f.__exit__(*error)


def _zeros(linear: Linear) -> tirx.Buffer:
    buffer = T.alloc_buffer((LANES,), linear.sum_dtype)
    with vectorized(LANES) as v:
        T.buffer_store(buffer, const(0, linear.sum_dtype), [v])
    return buffer


def load_vector(w: Place, at: Sequence[Expr], dtype: str) -> Expr:
    """Sixteen weights that lie side by side, widened."""
    return widened(w, w.buffer[(*at, T.ramp(i64(0), i64(1), LANES))], dtype)


def widened(w: Place, bits: Expr, dtype: str) -> Expr:
    """Sixteen weights as they lie, as numbers of a dtype."""
    if w.dtype == "bf16":
        wide = tirx.op.shift_left(
            tirx.Cast("uint32x16", bits), T.broadcast(tirx.IntImm("uint32", 16), LANES)
        )
        return bind(tirx.op.reinterpret("float32x16", wide))
    return bind(bits if w.dtype in ("f32", "f64") else tirx.Cast(f"{dtype}x16", bits))


def _store(
    linear: Linear,
    work: Work,
    sums: Mapping[int, tirx.Buffer],
    r: Expr,
    row: list[Expr],
    block: Expr,
) -> None:
    """The results of one row and column vector: a whole vector, or element by element at a
    ragged end.
    """
    ragged = linear.columns % LANES
    base = bind(block * i64(LANES))

    def vector() -> None:
        with vectorized(LANES) as v:
            _store_element(linear, work.within(v, 0, LANES), sums, r, row, base, v)

    if not ragged:
        return vector()
    with T.If(tirx.LE(base + i64(LANES), i64(linear.columns))):
        with T.Then():
            vector()
        with T.Else(), T.serial(i64(0), i64(ragged)) as lane:
            _store_element(linear, work.within(lane, 0, ragged), sums, r, row, base, lane)


def _store_element(
    linear: Linear,
    work: Work,
    sums: Mapping[int, tirx.Buffer],
    r: Expr,
    row: list[Expr],
    base: Expr,
    lane: Expr,
) -> None:
    j = base + lane
    facts = work.pull().facts

    def read(at: Sequence[Expr]) -> Expr:
        distance = facts.simplify(at[-1] - j)
        assert isinstance(distance, tirx.IntImm), f"{at[-1]} - {j}"
        value: Expr = sums[int(distance.value)][r, lane]
        whose = [] if linear.route is None else [linear.route.expert]
        for bias in linear.node.inputs[linear.scheme.bias_from :]:
            value = value + cast(work.pull().value(bias, [*whose, at[-1]]), linear.sum_dtype)
        return value

    pull = work.with_sources({linear.node: read}).pull()
    for n, place in linear.results.items():
        place.store([*row, j], pull.value(n, [*row, j]))
