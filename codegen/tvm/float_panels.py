"""Many rows over float weights on processors without a dot instruction for them.

x is laid out once, a few rows side by side after a few rows, so that what registers multiply lies
together. Weights of a chunk of k are widened once for a tile of rows: a column vector's stay in the
first cache while the tile passes, those of a panel of columns and the tile's part of x in the
second. Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, ACM TOMS 34(3),
2008. Sums wait between chunks as float32, so that each is added up in the order of k.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from . import amx
from .group_steps import fresh_vector, looped
from .isa import LANES, Isa, Tile
from .linear import Linear, Share, Tiling
from .loops import Work
from .register_tiles import load_vector, store_rows
from .row_tiles import MANY
from .tiles import RowTile, column_vectors, stored_blocks, sums_of
from .values import Expr, bind, cast, const, i64

CHUNK = 256
"""Steps of k at most whose weights of a column vector, 64 bytes each, stay in the first cache."""
SIZES = {"rows": (48, 96, 192), "columns": (2, 4, 8, 16)}
"""What a tile of rows and a panel of columns may be."""


def panel_of(isa: Isa) -> Tile:
    """Rows of a tile, a multiple of those in registers, and column vectors of a panel."""
    return Tile(16 * isa.many.rows, 8)


@dataclass(frozen=True)
class _Panel:
    """A panel at work: x float32 [run of rows, k, row], its column vectors as (offset, block),
    where their blocks are stored, their weights [vector, k of a chunk, 16] and sums [vector, row,
    16].
    """

    share: Share
    tile: Tile
    x: tirx.Buffer
    vectors: tuple[tuple[int, Expr], ...]
    blocks: tirx.Buffer
    weights: tirx.Buffer
    sums: tirx.Buffer

    @property
    def linear(self) -> Linear:
        """The linear that knows the weights."""
        return self.share.linear

    @property
    def held(self) -> int:
        """Rows whose sums are in registers."""
        return self.linear.kernel.isa.many.rows

    @property
    def abreast(self) -> int:
        """Column vectors whose sums are in registers."""
        own = self.linear.kernel.isa.many.columns
        return own if len(self.vectors) % own == 0 else 1

    @property
    def depth(self) -> int:
        """All of k."""
        return int(self.linear.x.shape[-1])

    @property
    def turn(self) -> int:
        """Steps of k written out."""
        return next(n for n in (4, 2, 1) if self.depth % n == 0)

    @property
    def chunk(self) -> int:
        """Steps of k of a chunk; the last may have fewer."""
        chunks = -(-self.depth // CHUNK)
        return -(-self.depth // (chunks * self.turn)) * self.turn


def emit_float_panels(linear: Linear, tiling: Tiling, tile: Tile) -> None:
    """All rows of a linear, panel of columns by panel."""
    tile = linear.kernel.chosen(MANY.name, tile)
    isa, blocks = linear.kernel.isa, -(-linear.columns // LANES)
    most = max(1, tile.columns // len(linear.offsets))
    wide = max(1, min(most, blocks // (2 * max(1, isa.cores))))
    panels = -(-blocks // wide)
    tile = replace(tile, columns=wide, rows=-(-tile.rows // isa.many.rows) * isa.many.rows)
    x = _laid_out(linear, tiling)

    def emit(share: Share, group: Expr) -> None:
        panel = _panel(share, tile, group, x)
        tiles = bind(tirx.truncdiv(share.rows + i64(tile.rows - 1), i64(tile.rows)))
        with T.serial(i64(0), tiles) as number:
            work = replace(linear.kernel.work().within(group, 0, panels), parallel=False)
            _row_tile(panel, work, group, number)

    tiling.over_panels(panels, emit)


def _laid_out(linear: Linear, tiling: Tiling) -> tirx.Buffer:
    """x as [run of rows, k, row], another row again where there is none."""
    held, depth = linear.kernel.isa.many.rows, int(linear.x.shape[-1])
    source, (most, _) = linear.kernel.places[linear.x], tiling.most
    made = T.alloc_buffer((most, i64(depth), i64(held)), "float32")
    with T.parallel(i64(0), tiling.tiles) as run:
        at = [tiling.index(bind(run * i64(held) + i64(r))) for r in range(held)]
        with T.serial(i64(0), i64(depth)) as k:
            for r, row in enumerate(at):
                T.buffer_store(made, cast(source.read([*row, k]), "float32"), [run, k, i64(r)])
    return made


def _panel(share: Share, tile: Tile, group: Expr, x: tirx.Buffer) -> _Panel:
    vectors = column_vectors(share.linear, group, tile.columns)
    width = len(vectors)
    blocks = stored_blocks(share.linear, vectors)
    weights = amx.buffer((width, CHUNK + 4, LANES), "float32")
    sums = amx.buffer((width, tile.rows, LANES), "float32")
    return _Panel(share, tile, x, vectors, blocks, weights, sums)


def _row_tile(panel: _Panel, work: Work, group: Expr, number: Expr) -> None:
    """The results of a tile of rows in a panel's columns."""
    linear, width, held = panel.linear, len(panel.vectors), panel.held
    own = RowTile.of(panel.share, number, panel.tile.rows, held)
    zero = T.broadcast(const(0, "float32"), LANES)
    with T.serial(i64(0), i64(width)) as v, T.serial(i64(0), i64(panel.tile.rows)) as r:
        T.buffer_store(panel.sums, zero, [v, r, T.ramp(i64(0), i64(1), LANES)])
    with T.serial(i64(0), i64(-(-panel.depth // panel.chunk))) as chunk:
        k = bind(chunk * i64(panel.chunk))
        count = bind(tirx.min(i64(panel.depth) - k, i64(panel.chunk)))
        with T.serial(i64(0), i64(width // panel.abreast)) as some:
            abreast = [bind(some * i64(panel.abreast) + i64(n)) for n in range(panel.abreast)]
            for v in abreast:
                _widen(panel, v, (k, count))
            with T.serial(i64(0), own.runs) as run:
                _add(panel, abreast, (k, count), bind(own.first + run), bind(run * i64(held)))
    for c in range(panel.tile.columns):
        sides = {
            o: sums_of(panel.sums, i * panel.tile.columns + c) for i, o in enumerate(linear.offsets)
        }
        span, block = (own.start, panel.tile.rows, own.end), panel.vectors[c][1]
        within = group * i64(panel.tile.columns) + i64(c) if c else None
        store_rows(linear, work, sides, span, block, within=within)


def _widen(panel: _Panel, v: Expr, part: tuple[Expr, Expr]) -> None:
    """The weights of a column vector for so many k from one on, as float32."""
    linear, (k, count) = panel.linear, part
    place, block = linear.kernel.places[linear.codes], bind(panel.blocks[v])
    with T.serial(i64(0), count) as step:
        value = load_vector(place, (block, bind(k + step)), "float32")
        T.buffer_store(panel.weights, value, [v, step, T.ramp(i64(0), i64(1), LANES)])


def _add(panel: _Panel, abreast: list[Expr], part: tuple[Expr, Expr], run: Expr, row: Expr) -> None:
    """Add the products of so many k, of a run of rows and column vectors abreast; `row` is the
    run's first among the sums.
    """
    lanes, inside, (k, count) = T.ramp(i64(0), i64(1), LANES), T.ramp(0, 1, LANES), part
    places = [[v, row + i64(r), lanes] for r in range(panel.held) for v in abreast]
    sums = [fresh_vector("float32", panel.sums[tuple(at)]) for at in places]

    def steps(n: Expr) -> None:
        for u in range(panel.turn):
            step = bind(n * i64(panel.turn) + i64(u))
            weights = [bind(panel.weights[v, step, lanes]) for v in abreast]
            for r in range(panel.held):
                x = T.broadcast(bind(panel.x[run, k + step, i64(r)]), LANES)
                for w, total in zip(weights, sums[r * len(abreast) :], strict=False):
                    T.buffer_store(total, total[inside] + x * w, [inside])

    turns = bind(tirx.floordiv(count, i64(panel.turn)))
    looped(panel.linear.kernel, turns, steps)
    for total, at in zip(sums, places, strict=True):
        T.buffer_store(panel.sums, total[inside], at)
