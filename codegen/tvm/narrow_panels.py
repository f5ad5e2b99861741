"""Many rows over 4-bit codes on AVX2, where sums of pairs of products are added up in 16 bits.

The codes of a panel of columns are unpacked once, as bytes, for all rows. Eight fours of k later a
row's 16-bit sums are multiplied by the multipliers of their columns and widened in one instruction
(vpmaddwd): a code costs little more than its vpmaddubsw and one addition, where a dot product that
is widened at once takes three instructions, two of which multiply. Rows go through a panel in tiles
whose part of the codes stays in the first cache while they pass, four rows at a time in registers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...ir.dims import product
from ...ir.node import Node
from ...ir.ops.quantized import operands
from . import amx
from .dots import Dot
from .group_steps import codes_at, fresh_vector, looped
from .isa import LANES, Tile
from .linear import Linear, Share, Tiling
from .loops import Place, Work
from .register_tiles import load_vector, store_rows
from .row_tiles import MANY
from .tiles import RowTile, column_vectors, stored_blocks, sums_of
from .two_levels import (
    BYTES,
    ask_next,
    begin_of_pairs,
    groups_per_block,
    pair_multipliers,
    steps_of_group,
)
from .values import Expr, bind, const, i64

PANEL = Tile(16, 4)
"""Rows whose sums wait in the first cache, and column vectors of a panel at most."""
SIZES = {"rows": (8, 16, 32), "columns": (1, 2, 4, 8)}
"""What else the tile may be."""
HELD = 128 << 10
"""Bytes at most of a panel's codes: they stay in the second cache while all rows pass."""
ONE_TILE = Tile(24, 1)
"""Rows up to which a tile passes once: a block of codes is unpacked as its rows come, in the first
cache, and the panel is as narrow as may be, so that its weights come from memory in their order.
"""
ROWS = 4
"""Rows in registers: sums of four rows by sixteen columns take eight of the sixteen."""
_UNROLL = 2  # fours written out: with more LLVM moves loads ahead, and sums leave their registers
_DOT = Dot("pairs", "u4")


def fits_narrow(node: Node) -> bool:
    """Whether the sums of every group fit in 16 bits up to where they are multiplied: all codes
    have one zero, and groups with multipliers are no longer than 16 bits hold the sums of.
    """
    found = operands(node)
    if found.codes.dtype != "u4" or found.zeros is not None:
        return False
    fours = int(found.x.shape[-1]) // groups_per_block(node) // 4
    return fours % 2 == 0 and (found.multipliers is None or fours <= _DOT.narrow)


@dataclass(frozen=True)
class _Rows:
    """Four rows side by side after four rows: fours of k as words int32 [four rows, k / 4, row],
    scales float32 [.., block of groups, row], what the sums of groups begin with int32
    [.., group, row]. As they lie in x, rows of a power of two of bytes would drive each other out
    of the first cache.
    """

    words: tirx.Buffer
    scales: tirx.Buffer
    begin: tirx.Buffer


@dataclass(frozen=True)
class _Panel:
    """A panel at work: its column vectors as (offset, block), where their blocks are stored, their
    codes as bytes [k / 4, vector, 64] and their multipliers [group, vector, 32], twice for each
    column. With `once` those are of one block of groups and one vector alone.
    """

    share: Share
    tile: Tile
    x: _Rows
    vectors: tuple[tuple[int, Expr], ...]
    blocks: tirx.Buffer
    codes: tirx.Buffer
    times: tirx.Buffer | None
    once: bool

    @property
    def linear(self) -> Linear:
        """The linear that knows the weights."""
        return self.share.linear

    def at(self, v: Expr, g: Expr) -> tuple[Expr, Expr]:
        """Where a block of groups of a vector lies: (block, vector)."""
        return (i64(0), i64(0)) if self.once else (g, v)

    @property
    def per(self) -> int:
        """Groups of a block that has one scale."""
        return groups_per_block(self.linear.node)

    @property
    def fours(self) -> int:
        """Fours of k in a group."""
        return 2 * steps_of_group(self.linear.node)

    @property
    def count(self) -> int:
        """Blocks of groups in a row."""
        return int(operands(self.linear.node).x.shape[-2])


def emit_narrow(linear: Linear, tiling: Tiling, tile: Tile, begin: Node) -> None:
    """All rows of a linear, panel of columns by panel; `begin` is what the sums of each group begin
    with, [.., J], or [.., B, P] with multipliers.
    """
    x = _laid_out(linear, tiling, linear.kernel.places[begin])
    blocks = -(-linear.columns // LANES)
    tile = linear.kernel.chosen(MANY.name, tile)
    most = min(tile.columns, HELD // (LANES * int(product(operands(linear.node).x.shape[-2:]))))
    wide = min(blocks, max(1, most // len(linear.offsets)))
    with T.If(tirx.LE(tiling.mean, i64(ONE_TILE.rows))):
        with T.Then():
            _over_panels(linear, x, tiling, ONE_TILE, once=True)
        with T.Else():
            _over_panels(linear, x, tiling, replace(tile, columns=wide), once=False)


def _over_panels(linear: Linear, x: _Rows, tiling: Tiling, tile: Tile, *, once: bool) -> None:
    """The results of all rows in panels of a tile's columns, a tile of rows after the other."""
    blocks = -(-linear.columns // LANES)
    panels = -(-blocks // tile.columns)

    def emit(share: Share, group: Expr) -> None:
        panel = _panel(share, tile, group, x, once=once)
        tiles = bind(tirx.truncdiv(share.rows + i64(tile.rows - 1), i64(tile.rows)))
        with T.serial(i64(0), tiles) as number:
            work = replace(linear.kernel.work().within(group, 0, panels), parallel=False)
            _row_tile(panel, work, group, number, tiles)

    tiling.over_panels(panels, emit)


def _laid_out(linear: Linear, tiling: Tiling, begin: Place) -> _Rows:
    """x, its scales and what sums begin with, another row again where there is none."""
    node = linear.node
    found, places = operands(node), linear.kernel.places
    assert found.x_scale is not None
    source, factors = places[linear.x].buffer, places[found.x_scale]
    count, length = (int(d) for d in found.x.shape[-2:])
    per, (most, _) = groups_per_block(node), tiling.most
    words = T.alloc_buffer((most, i64(count * length // 4), i64(ROWS)), "int32")
    scales = T.alloc_buffer((most, i64(count), i64(ROWS)), "float32")
    first = T.alloc_buffer((most, i64(count * per), i64(ROWS)), "int32")
    with T.parallel(i64(0), tiling.tiles) as run, T.serial(i64(0), i64(ROWS)) as r:
        row = tiling.index(bind(run * i64(ROWS) + r))
        with T.serial(i64(0), i64(count)) as g:
            T.buffer_store(scales, factors.read([*row, g]), [run, g, r])
            for p in range(per):
                value = begin.read([*row, g, *((i64(p),) if per > 1 else ())])
                T.buffer_store(first, value, [run, g * i64(per) + i64(p), r])
            with T.serial(i64(0), i64(length // 4)) as four:
                word = source[(*row, g, T.ramp(four * i64(4), i64(1), 4))]
                value = tirx.op.reinterpret("int32", word)
                T.buffer_store(words, value, [run, g * i64(length // 4) + four, r])
    return _Rows(words, scales, first)


def _panel(share: Share, tile: Tile, group: Expr, x: _Rows, *, once: bool) -> _Panel:
    """A panel with its codes and multipliers laid out, or with room for a block's."""
    linear = share.linear
    vectors = column_vectors(linear, group, tile.columns)
    node, width = linear.node, len(vectors)
    count, length = (int(d) for d in operands(node).x.shape[-2:])
    blocks = stored_blocks(linear, vectors)
    held = (1, 1) if once else (count, width)
    codes = amx.buffer((held[0] * length // 4, held[1], BYTES), "uint8")
    times = None
    if operands(node).multipliers is not None:
        times = amx.buffer((held[0] * groups_per_block(node), held[1], 2 * LANES), "int16")
    panel = _Panel(share, tile, x, vectors, blocks, codes, times, once)
    if not once:
        with T.serial(i64(0), i64(width)) as v:
            block = bind(blocks[v])
            with T.serial(i64(0), i64(count)) as g:
                _unpack(panel, v, block, g)
    return panel


def _unpack(panel: _Panel, v: Expr, block: Expr, g: Expr) -> None:
    """The codes and multipliers of a block of groups of a column vector."""
    linear = replace(panel.linear, streams=1)
    half_steps, steps = i64(panel.per * panel.fours), panel.per * panel.fours // 2
    first, vector = panel.at(v, g)
    for p in range(panel.per if panel.times is not None else 0):
        value = pair_multipliers(linear, block, g, p)
        assert panel.times is not None
        at = [first * i64(panel.per) + i64(p), vector, T.ramp(i64(0), i64(1), 2 * LANES)]
        T.buffer_store(panel.times, value, at)
    with T.serial(i64(0), i64(steps)) as s:
        parts = codes_at(linear, _DOT, block, bind(g * i64(steps) + s))
        for half in range(2):
            for low, part in zip(range(0, BYTES, BYTES // 2), parts, strict=True):
                lanes = T.ramp(i64(low), i64(1), BYTES // 2)
                at = [first * half_steps + s * i64(2) + i64(half), vector, lanes]
                T.buffer_store(panel.codes, _DOT.nibbles(part, half), at)


def _row_tile(panel: _Panel, work: Work, group: Expr, number: Expr, tiles: Expr) -> None:
    """The results of a tile of rows in a panel's columns; a part of the next panel is asked for
    with each.
    """
    linear, width = panel.linear, len(panel.vectors)
    own = RowTile.of(panel.share, number, panel.tile.rows, ROWS)
    sums = T.alloc_buffer((width, panel.tile.rows, LANES), "float32")
    with T.serial(i64(0), i64(width)) as v, T.serial(i64(0), i64(panel.tile.rows)) as r:
        T.buffer_store(sums, _none("float32"), [v, r, T.ramp(i64(0), i64(1), LANES)])
    lines = panel.per * panel.fours // 2
    share = bind(tirx.floordiv(i64(lines) + tiles - i64(1), tiles))
    with T.serial(i64(0), i64(panel.count)) as g:
        ask_next(linear, panel.vectors, panel.tile.columns, g, (bind(number * share), share))
        with T.serial(i64(0), i64(width)) as v:
            block = bind(panel.blocks[v])
            if panel.once:
                _unpack(panel, v, block, g)
            with T.serial(i64(0), own.runs) as part:
                run = bind(own.first + part)
                _add_block(panel, sums, (v, block, bind(part * i64(ROWS))), g, run)
    wide = panel.tile.columns
    for c in range(wide):
        mine = {o: sums_of(sums, i * wide + c) for i, o in enumerate(linear.offsets)}
        within = group * i64(wide) + i64(c) if c else None
        span, block = (own.start, panel.tile.rows, own.end), panel.vectors[c][1]
        store_rows(linear, work, mine, span, block, within=within)


def _add_block(
    panel: _Panel, sums: tirx.Buffer, place: tuple[Expr, Expr, Expr], g: Expr, run: Expr
) -> None:
    """Add the products of a block of groups, of a run of four rows and a column vector, to their
    sums; `place`: the vector, its stored block, and the first of the rows among the sums.
    """
    v, block, first = place
    wholes = _whole_numbers(panel, v, g, run)
    places = panel.linear.kernel.places
    scale = load_vector(places[operands(panel.linear.node).scale], (block, g), "float32")
    for r, whole in enumerate(wholes):
        factor = T.broadcast(panel.x.scales[run, g, i64(r)], LANES)
        at = [v, bind(first + i64(r)), T.ramp(i64(0), i64(1), LANES)]
        value = tirx.Cast(f"float32x{LANES}", whole[T.ramp(0, 1, LANES)])
        T.buffer_store(sums, sums[tuple(at)] + value * (scale * factor), at)


def _whole_numbers(panel: _Panel, v: Expr, g: Expr, run: Expr) -> list[tirx.Buffer]:
    """The whole numbers of a block of groups, of each row of a run."""
    begin, rows, per = panel.x.begin, range(ROWS), panel.per
    block, vector = panel.at(v, g)

    def fours(first: Expr, number: Expr) -> _Fours:
        held = block * i64(per * panel.fours) + number
        return _Fours(run, bind(first * i64(per * panel.fours) + number), bind(held), vector)

    if panel.times is None:
        wholes = [fresh_vector("int32", T.broadcast(begin[run, g, i64(r)], LANES)) for r in rows]
        stretch = next(n for n in range(_DOT.narrow, 1, -_UNROLL) if panel.fours % n == 0)
        with T.serial(i64(0), i64(panel.fours // stretch)) as s:
            narrow = [fresh_vector("int16", _none("int16", 2 * LANES), 2 * LANES) for _ in rows]
            _add_fours(panel, narrow, stretch, fours(g, s * i64(stretch)))
            for whole, pairs in zip(wholes, narrow, strict=True):
                _DOT.widen(whole, pairs)
        return wholes
    wholes = [fresh_vector("int32", _none("int32")) for _ in rows]
    with T.serial(i64(0), i64(per)) as p:
        number, held = bind(g * i64(per) + p), bind(block * i64(per) + p)
        narrow = [
            fresh_vector("int16", begin_of_pairs(begin[run, number, i64(r)]), 2 * LANES)
            for r in rows
        ]
        _add_fours(panel, narrow, panel.fours, fours(g, p * i64(panel.fours)))
        times = [
            bind(panel.times[held, vector, T.ramp(i64(low), i64(1), LANES)]) for low in (0, LANES)
        ]
        for whole, pairs in zip(wholes, narrow, strict=True):
            _DOT.widen(whole, pairs, times)
    return wholes


def _none(dtype: str, lanes: int = LANES) -> Expr:
    return T.broadcast(const(0, dtype), lanes)


@dataclass(frozen=True)
class _Fours:
    """Fours of k at work: the run of rows, the first of them in x and where its codes are held, of
    which vector.
    """

    run: Expr
    first: Expr
    held: Expr
    vector: Expr


def _add_fours(panel: _Panel, narrow: list[tirx.Buffer], count: int, fours: _Fours) -> None:
    """Add the products of so many fours of k in 16 bits."""

    def step(n: Expr) -> None:
        four, held = bind(fours.first + n), bind(fours.held + n)
        codes = [
            bind(panel.codes[held, fours.vector, T.ramp(i64(low), i64(1), BYTES // 2)])
            for low in range(0, BYTES, BYTES // 2)
        ]
        for r, total in enumerate(narrow):
            word = bind(panel.x.words[fours.run, four, i64(r)])
            for half, part in enumerate(codes):
                _DOT.add(total, half, (part,), word)

    def steps(n: Expr) -> None:
        for u in range(_UNROLL):
            step(bind(n * i64(_UNROLL) + i64(u)))

    looped(panel.linear.kernel, count // _UNROLL, steps)
