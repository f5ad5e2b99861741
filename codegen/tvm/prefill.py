"""Attention of many tokens: an item's rows pass over each split of keys in register tiles."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .attention import Attention, Item, Span, splits
from .isa import LANES
from .loops import Work
from .pairs import products_of
from .scales import Scales
from .scores import Floats, Rows
from .softmax import Factors, Level, Row, Totals, clear, fold_levels, fold_values, padded, weigh
from .values import Expr, bind, i64


@dataclass(frozen=True)
class _Tile:
    """Scratch of one register tile of rows, and of the split's keys."""

    kt: tirx.Buffer
    v: tirx.Buffer | None
    scales: Scales | None
    scores: tirx.Buffer
    weights: tirx.Buffer
    values: tirx.Buffer
    level: Level
    factors: Factors


def emit_tokens(a: Attention, work: Work, item: Item) -> None:
    """The whole of an item of one group: all its splits, and its results."""
    products = products_of(a)
    size = products.row_tile
    with products.ready(size):
        _over_splits(a, products, work, item, size)


def _over_splits(a: Attention, products: Floats, work: Work, item: Item, size: int) -> None:
    most = -(-a.tokens * a.repeat // size)
    rows = bind(item.count * i64(a.repeat))
    tiles = bind(tirx.floordiv(rows + i64(size - 1), i64(size)))
    q, totals = products.queries(most * size), Totals.scratch(a, most, size)
    _begin(a, products, work, item, q, totals, rows, tiles)
    tile = _tile(a, products, size)
    with T.serial(*splits(item, a.space.keys)) as split:
        span = Span.of(split, a.space.keys, item.low, item.high)
        _lay_out(products, work, item, span, tile, size)
        with T.serial(i64(0), tiles) as t:
            own = _own_span(a, item, span, bind(t * i64(size)), rows, size)
            with T.If(tirx.LT(own.begin, own.end)), T.Then():
                _over_split(a, products, work, item, own, t, rows, q, tile, totals)
    with T.serial(i64(0), rows) as r:
        totals.finish(a, work, item, r, a.head(item, r))


def _tile(a: Attention, products: Floats, size: int) -> _Tile:
    scores = products.matrix(size, a.space.keys)
    tile = _Tile(
        products.keys(a.space.keys // LANES),
        products.value_scratch(a.space.keys),
        products.scales(1),
        scores,
        products.weights(scores),
        products.matrix(size, padded(a)),
        Level.scratch(1),
        Factors.scratch(1),
    )
    tile.level.clear(i64(0))
    return tile


def _lay_out(products: Floats, work: Work, item: Item, span: Span, tile: _Tile, size: int) -> None:
    """The keys of a split turned round, and its values where products want them laid out."""
    vectors = products.vectors_of(size)
    first, last = span.blocks(vectors * LANES)
    with T.serial(first * i64(vectors), last * i64(vectors)) as run:
        products.turn_keys(work, item, tile.kt, run, bind(span.base + run * i64(LANES)))
    if tile.scales is not None:
        tile.scales.read(products.a, item, span, (item.group, item.group + i64(1)))
    if tile.v is None:
        return
    keys = i64(products.key_step)
    with T.serial(*span.blocks(products.key_step)) as step:
        products.put_values(item, tile.v, step, bind(span.base + step * keys))


def _begin(
    a: Attention,
    products: Floats,
    work: Work,
    item: Item,
    q: tirx.Buffer,
    totals: Totals,
    rows: Expr,
    tiles: Expr,
) -> None:
    """Queries of all rows of the tiles, zeros past the last; nothing seen yet."""
    with T.serial(i64(0), tiles) as t:
        totals.level.clear(t)
    with T.serial(i64(0), tiles * i64(products.row_tile)) as r, T.If(tirx.LT(r, rows)):
        with T.Then():
            source = a.head(item, r)
            products.put_query(work, item, q, r, source)
            totals.begin(a, work, r, source[1])
        with T.Else():
            products.put_query(work, item, q, r, None)
            clear(totals.values, r)


def _own_span(a: Attention, item: Item, span: Span, first: Expr, rows: Expr, size: int) -> Span:
    """The part of a span that the rows of a tile see: later tokens see no fewer and no earlier
    keys.
    """
    last = bind(tirx.min(first + i64(size), rows) - i64(1))
    low, _ = a.seen(item, a.head(item, first)[0])
    _, high = a.seen(item, a.head(item, last)[0])
    begin = bind(tirx.max(low - span.base, span.begin))
    return Span(span.base, begin, bind(tirx.min(high - span.base, span.end)))


def _over_split(
    a: Attention,
    products: Floats,
    work: Work,
    item: Item,
    span: Span,
    t: Expr,
    rows: Expr,
    q: tirx.Buffer,
    tile: _Tile,
    totals: Totals,
) -> None:
    """A tile's scores, weights and values of one split, folded into the totals."""
    size = products.row_tile
    vectors = products.vectors_of(size)
    start = bind(t * i64(size))
    mine, scores = Rows(q, start, size), Rows(tile.scores, i64(0), size)
    with T.serial(*span.blocks(vectors * LANES)) as block:
        run = bind(block * i64(vectors))
        products.score(mine, tile.kt, run, vectors, scores, bind(run * i64(LANES)))
    with T.serial(i64(0), i64(size)) as r:
        held = bind(tirx.min(start + r, rows - i64(1)))
        row = Row(tile.scores, tile.weights, r, *a.head(item, held), tile.scales)
        tile.level.put(i64(0), r, *weigh(a, work, item, row, span, products.key_step))
        clear(tile.values, r)
    values = Rows(tile.values, i64(0), size)
    weights = Rows(tile.weights, i64(0), size)
    products.accumulate(work, item, weights, span, values, tile.v)
    fold_levels(totals.level, t, tile.level, i64(0), tile.factors, i64(0))
    with T.serial(i64(0), i64(size)) as r:
        into = Rows(totals.values, bind(start + r), 1)
        fold_values(padded(a), into, Rows(tile.values, r, 1), tile.factors, (i64(0), r))
