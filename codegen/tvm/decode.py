"""Attention of one token: an item is one split of the keys, of all groups or some of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .ahead import Ahead, Notes
from .attention import Attention, Item, Span
from .isa import LANES
from .loops import Work
from .pairs import Pairs, products_of_one, streams
from .scales import Scales
from .scores import Floats, Rows, by_tiles
from .softmax import Factors, Level, Row, Totals, clear, fold_levels, fold_values, padded, weigh
from .streamed import PairStream
from .values import Expr, bind, i64
from .words import Words, WordStream


@dataclass(frozen=True)
class Partials:
    """What splits give, by their number in the step: levels, LANES heads a vector, and weighted
    values [number, head, padded width].
    """

    heads: int
    level: Level
    values: tirx.Buffer

    @staticmethod
    def scratch(products: Floats, count: Expr) -> Partials:
        """For so many splits."""
        a = products.a
        vectors = -(-a.heads // LANES)
        values = products.matrix(count * i64(a.heads), padded(a))
        return Partials(a.heads, Level.scratch(count * i64(vectors)), values)

    @property
    def vectors(self) -> int:
        """Vectors of heads."""
        return -(-self.heads // LANES)

    def row(self, number: Expr, head: Expr) -> Expr:
        """Where a head's values of a split lie."""
        return bind(number * i64(self.heads) + head)


@dataclass(frozen=True)
class Turn:
    """A thread's turn at an item: the item's number, and what it knows, or may find out, of the
    one that it will take up next.
    """

    number: Expr
    notes: Notes
    find: Callable[[Notes], None]


@dataclass(frozen=True)
class _Split:
    """A split at work: queries, scores and weights of all heads, the scales of its codes, and where
    its results go.
    """

    q: tirx.Buffer
    scores: tirx.Buffer
    weights: tirx.Buffer
    scales: Scales | None
    partials: Partials
    number: Expr

    def values(self, first: Expr, count: int) -> Rows:
        """Where the weighted values of some heads go."""
        return Rows(self.partials.values, self.partials.row(self.number, first), count)

    def weigh(
        self,
        a: Attention,
        work: Work,
        item: Item,
        span: Span,
        groups: tuple[Expr, Expr],
        step: int,
        each: Callable[[], None] | None = None,
    ) -> None:
        """Weights from scores; the values' sums begin with zeros."""
        partials, number = self.partials, self.number
        if self.scales is not None:
            self.scales.read(a, item, span, groups)
        low, high = (bind(g * i64(a.repeat)) for g in groups)
        with T.serial(low, high) as h:
            group = tirx.floordiv(h - low, i64(a.repeat))
            scales = None if self.scales is None else self.scales.of(bind(group))
            row = Row(self.scores, self.weights, h, i64(0), h, scales)
            vector = bind(number * i64(partials.vectors) + tirx.floordiv(h, i64(LANES)))
            largest, total = weigh(a, work, item, row, span, step, each)
            partials.level.put(vector, tirx.floormod(h, i64(LANES)), largest, total)
            clear(partials.values, partials.row(number, h))


def emit_split(
    a: Attention,
    work: Work,
    item: Item,
    split: Expr,
    groups: tuple[Expr, Expr],
    partials: Partials,
    number: Expr,
    turn: Turn,
) -> None:
    """Split `split` of an item's keys, for a range of groups, into the partials."""
    products = products_of_one(a)
    size = products.tile_of(a.repeat)
    scores = products.matrix(a.heads, a.space.keys)
    own = _Split(
        products.queries(a.heads), scores, products.weights(scores), products.scales(a.groups),
        partials, number,
    )  # fmt: skip
    span = Span.of(split, a.space.keys, item.low, item.high)
    low, high = (bind(g * i64(a.repeat)) for g in groups)
    with T.serial(low, high) as h:
        products.put_query(work, item, own.q, h, (i64(0), h))
    stream = _stream_of(products)
    if stream is not None:
        return _stream(a, stream, work, item, span, groups, own, turn)
    with products.ready(size):
        _score(a, products, work, item, span, groups, own.q, scores)
        own.weigh(a, work, item, span, groups, products.key_step)
        into = own.values(i64(0), a.heads)
        _accumulate(a, products, work, item, span, groups, own.weights, into)


def _accumulate(
    a: Attention,
    products: Floats,
    work: Work,
    item: Item,
    span: Span,
    groups: tuple[Expr, Expr],
    weights: tirx.Buffer,
    into: Rows,
) -> None:
    """Weighted values of all heads, a stretch of keys of every group before the next stretch."""
    v = products.value_scratch(a.space.stream)
    size = products.tile_of(a.repeat)
    with T.serial(*span.blocks(a.space.stream)) as block, T.serial(*groups) as g:
        part = _part(span, block, a.space.stream)
        start = bind(block * i64(a.space.stream))
        _fetch(a, 1, item, span, bind(start + i64(a.space.stream)), a.space.stream, groups, g)
        own = replace(item, group=g)
        if v is not None:
            first, last = part.blocks(products.key_step)
            keys = i64(products.key_step)
            with T.serial(first, last) as step:
                at = bind(step - tirx.floordiv(start, keys))
                products.put_values(own, v, at, bind(span.base + step * keys))
        head = bind(g * i64(a.repeat))

        def values(mine: Rows, to: Rows) -> None:
            products.accumulate(work, own, mine, part, to, v, start)

        to = Rows(into.buffer, bind(into.first + head), a.repeat)
        by_tiles(size, Rows(weights, head, a.repeat), to, values)


def _score(
    a: Attention,
    products: Floats,
    work: Work,
    item: Item,
    span: Span,
    groups: tuple[Expr, Expr],
    q: tirx.Buffer,
    scores: tirx.Buffer,
) -> None:
    """Scores of all heads, a stretch of keys of every group before the next stretch."""
    runs = a.space.stream // LANES
    kt = products.keys(runs)
    size = products.tile_of(a.repeat)
    vectors = min(runs, products.vectors_of(size))
    with T.serial(*span.blocks(a.space.stream)) as block, T.serial(*groups) as g:
        own = replace(item, group=g)
        start = bind(block * i64(a.space.stream))
        with T.serial(i64(0), i64(runs)) as run:
            ahead = bind(start + i64(a.space.stream) + run * i64(LANES))
            with T.If(tirx.LT(start + i64(a.space.stream), span.end)):
                with T.Then():
                    _fetch(a, 0, item, span, ahead, LANES, groups, g)
                with T.Else():
                    stride = i64(a.space.stream)
                    begin = bind(tirx.floordiv(span.begin, stride) * stride)
                    _fetch(a, 1, item, span, bind(begin + run * i64(LANES)), LANES, groups, g)
            products.turn_keys(work, own, kt, run, bind(span.base + start + run * i64(LANES)))
        first = bind(g * i64(a.repeat))

        def tile(mine: Rows, to: Rows) -> None:
            with T.serial(i64(0), i64(runs // vectors)) as c:
                run = bind(c * i64(vectors))
                products.score(mine, kt, run, vectors, to, bind(start + run * i64(LANES)))

        rows = a.repeat
        by_tiles(size, Rows(q, first, rows), Rows(scores, first, rows), tile)


def _fetch(
    a: Attention,
    which: int,
    item: Item,
    span: Span,
    start: Expr,
    keys: int,
    groups: tuple[Expr, Expr],
    g: Expr,
) -> None:
    """Ask for a share of some keys or values that come next, all groups of each, while group g is
    at work: in the order in which they lie.
    """
    if a.memory is None:
        return
    low, high = groups
    count = high - low
    first, last = (
        bind(start + tirx.truncdiv((g - low + i64(n)) * i64(keys), count)) for n in (0, 1)
    )
    with T.serial(first, tirx.min(last, span.end)) as j:
        slot = bind(a.slot(item, bind(span.base + j)))
        a.memory[which].fetch(slot, groups)


def _part(span: Span, block: Expr, size: int) -> Span:
    """The keys of a span that lie in a block of so many."""
    start = bind(block * i64(size))
    begin = bind(tirx.max(span.begin, start))
    return Span(span.base, begin, bind(tirx.min(span.end, start + i64(size))))


def emit_fold(
    a: Attention, work: Work, item: Item, partials: Partials, first: Expr, count: Expr
) -> None:
    """A sequence's result from its splits, folded in their order."""
    totals = Totals.scratch(a, partials.vectors, LANES)
    factors = Factors.scratch(partials.vectors)
    with T.serial(i64(0), i64(partials.vectors)) as v:
        totals.level.clear(v)
    with T.serial(i64(0), i64(a.heads)) as h:
        totals.begin(a, work, h, h)
    with T.serial(i64(0), count) as s:
        number = bind(first + s)
        with T.serial(i64(0), i64(partials.vectors)) as v:
            at = bind(number * i64(partials.vectors) + v)
            fold_levels(totals.level, v, partials.level, at, factors, v)
        with T.serial(i64(0), i64(a.heads)) as h:
            lane = (tirx.floordiv(h, i64(LANES)), tirx.floormod(h, i64(LANES)))
            part = Rows(partials.values, partials.row(number, h), 1)
            fold_values(padded(a), Rows(totals.values, h, 1), part, factors, lane)
    with T.serial(i64(0), i64(a.heads)) as h:
        totals.finish(a, work, item, h, (i64(0), h))


def _stream_of(products: Floats) -> PairStream | WordStream | None:
    """How keys and values are read as they lie; None: they are turned round first."""
    if isinstance(products, Words):
        return WordStream.of(products)
    if type(products) is Pairs and streams(products.a):
        return PairStream(products)
    return None


def _stream(
    a: Attention,
    stream: PairStream | WordStream,
    work: Work,
    item: Item,
    span: Span,
    groups: tuple[Expr, Expr],
    split: _Split,
    turn: Turn,
) -> None:
    """A split of an item, all groups of some keys before the next keys: as they lie in memory."""
    step = stream.products.key_step
    ahead = Ahead.of(a, item, span, groups, turn.number, turn.notes, stream.reach)
    with T.serial(*span.blocks(stream.keys)) as block, T.serial(*groups) as g:
        own, first = replace(item, group=g), bind(g * i64(a.repeat))
        at = bind(block * i64(stream.keys))
        q, to = (Rows(b, first, a.repeat) for b in (split.q, split.scores))
        stream.score(work, own, q, bind(span.base + at), to, at, ahead.ask)
    # Memory does not wait while weights are computed: some of the values come then.
    split.weigh(a, work, item, span, groups, step, lambda: ahead.ask(1))
    ahead.look(turn.find)
    with T.serial(*span.blocks(stream.stretch)) as block, T.serial(*groups) as g:
        own, first = replace(item, group=g), bind(g * i64(a.repeat))
        weights = Rows(split.weights, first, a.repeat)
        to = split.values(first, a.repeat)
        part = _part(span, block, stream.stretch)
        stream.accumulate(own, weights, part, to, ahead.ask)
    with T.serial(*(bind(g * i64(a.repeat)) for g in groups)) as h:
        stream.settle(split.values(h, 1))
