"""The linear template in register tiles: variants by the number of rows, sums, what is done with
them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...ir.dims import product
from ...ir.node import Node
from ..backend import Layout
from .epilogues import fused_behind
from .function import Kernel
from .isa import LANES, Tile
from .linear import InOrder, Linear, Scheme, Sums
from .loops import Place, Work, flat_index, over_rows
from .row_tiles import variants
from .values import Expr, bind, cast, const, i64, vectorized

PARALLEL_FROM = 1 << 18
"""Multiplications from which a linear goes to all threads."""


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
    scheme, other = linear.scheme, linear.scheme.many
    above = None if other is None else other.above
    limited, many = variants(linear.kernel, scheme.tiles, above, scheme.some)
    if isinstance(count, int):
        limited = [(limit, tile) for limit, tile in limited if count <= limit][:1]

    def by_size(left: Sequence[tuple[int, Tile]]) -> None:
        if not left:
            if other is None:
                return _variant(linear, many, rows)
            return other.emit(linear, InOrder(linear, rows, other.height))
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
