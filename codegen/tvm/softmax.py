"""Softmax of the attention template: the weights of a row's scores in one split, and the fold of
splits into one another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from . import mathematics as m
from .attention import Attention, Item, Span
from .isa import LANES
from .loops import Work, along
from .reductions import across, fold_of
from .scales import Scales
from .scores import Rows
from .values import Expr, bind, cast, const, i64, vectorized
from .vectors import filled, lanes_from

NEVER = float("-inf")


def _f(value: float) -> Expr:
    return const(value, "float32")


def _i(value: Expr | int) -> Expr:
    return tirx.Cast("int32", value) if not isinstance(value, int) else const(value, "int32")


@dataclass(frozen=True)
class Level:
    """Where rows stand, LANES of them side by side: `largest` score, `total` of weights."""

    largest: tirx.Buffer
    total: tirx.Buffer

    @staticmethod
    def scratch(vectors: int | Expr) -> Level:
        """For so many vectors of rows."""
        shape = (i64(vectors), i64(LANES))
        return Level(T.alloc_buffer(shape, "float32"), T.alloc_buffer(shape, "float32"))

    def put(self, vector: Expr, lane: Expr, largest: Expr, total: Expr) -> None:
        """Set a row's."""
        T.buffer_store(self.largest, largest, [vector, lane])
        T.buffer_store(self.total, total, [vector, lane])

    def clear(self, vector: Expr) -> None:
        """No keys seen yet, in all lanes."""
        T.buffer_store(self.largest, T.broadcast(_f(NEVER), LANES), [vector, lanes_from(0)])
        T.buffer_store(self.total, T.broadcast(_f(0), LANES), [vector, lanes_from(0)])


@dataclass(frozen=True)
class Row:
    """A row of scores at work: where it lies, where its weights go, whose it is, and what scores
    and weights of codes are multiplied by.
    """

    scores: tirx.Buffer
    weights: tirx.Buffer
    at: Expr
    token: Expr
    head: Expr
    scales: Scales | None = None


def weigh(
    a: Attention,
    work: Work,
    item: Item,
    row: Row,
    span: Span,
    step: int,
    each: Callable[[], None] | None = None,
) -> tuple[Expr, Expr]:
    """The weights of scores over the steps of so many keys that hold the span; gives (largest
    score, sum of weights as they are stored). `each` is done once for LANES keys.

    A row that sees none of the keys has weights of zero and -inf as its largest score.
    """
    low, high = a.seen(item, row.token)
    begin = bind(_i(tirx.max(low - span.base, i64(-1))))
    end = bind(_i(tirx.min(high - span.base, span.end)))
    first, last = (bind(b * i64(step // LANES)) for b in span.blocks(step))
    best, plain = filled(NEVER), _is_plain(a, row)

    def look(*, masked: bool) -> None:
        with T.serial(first, last) as c:
            start = bind(c * i64(LANES))
            with vectorized(LANES) as v:
                score = row.scores[row.at, start + v]
                if not plain:
                    score = _score(a, work, item, row, bind(span.base + start), start, v)
                if masked:
                    j, base = tirx.Cast("int32", v), _i(start)  # lanes stay a constant vector
                    seen = tirx.And(tirx.GE(j, begin - base), tirx.LT(j, end - base))
                    score = tirx.Select(seen, score, _f(NEVER))
                if masked or not plain:
                    T.buffer_store(row.scores, score, [row.at, start + v])
                T.buffer_store(best, tirx.max(best[v], row.scores[row.at, start + v]), [v])

    # Most splits are seen whole: their scores are looked at alone.
    lanes = const(LANES, "int32")
    whole = tirx.And(tirx.LE(begin, _i(first) * lanes), tirx.GE(end, _i(last) * lanes))
    with T.If(whole):
        with T.Then():
            look(masked=False)
        with T.Else():
            look(masked=True)
    largest = across(best, tirx.max, "float32")
    level = bind(tirx.Select(tirx.EQ(largest, _f(NEVER)), _f(0), largest))
    total, times = filled(0), a.scale if plain else 1.0
    narrow = str(row.weights.dtype) != "float32"
    if narrow:
        a.kernel.snippets.add(POWER)
    with T.serial(first, last) as c:
        start = bind(c * i64(LANES))
        if each is not None:
            each()
        if narrow:
            _put_narrow(row, start, level, times, total)
        else:
            _put(row, start, level, times, total)
    return largest * _f(times), across(total, fold_of("reduce_sum"), "float32")


def _is_plain(a: Attention, row: Row) -> bool:
    """Whether scores are products times a scale and nothing else: the largest product is then the
    largest score's.
    """
    more = (a.bias, a.visible, row.scales)
    return a.scale > 0 and not a.softcap and all(m is None for m in more)


POWER = """
define <16 x float> @ferrule_power(<16 x float> %p, <16 x float> %n, <16 x float> %x) alwaysinline {
  %low = insertelement <16 x float> poison, float -1.25e+02, i32 0
  %all = shufflevector <16 x float> %low, <16 x float> poison, <16 x i32> zeroinitializer
  %c = fcmp uge <16 x float> %x, %all
  %k = bitcast <16 x i1> %c to i16
  %r = call <16 x float> @llvm.x86.avx512.mask.scalef.ps.512(
    <16 x float> %p, <16 x float> %n, <16 x float> zeroinitializer, i16 %k, i32 4)
  ret <16 x float> %r
}
declare <16 x float> @llvm.x86.avx512.mask.scalef.ps.512(
  <16 x float>, <16 x float>, <16 x float>, i16, i32)
"""
"""vscalefps: p 2^n where x is -125 or more or NaN, 0 elsewhere. Smaller ones are not scaled down to
it: an Intel core takes hundreds of cycles for numbers that are too small for their exponent.
"""

_POWER = (0.05517161240549, 0.24261114330919, 0.69326099440538, 0.99992807235440)
"""2^f for |f| <= 1/2 within 7.5e-5 of itself: weights of bfloat16 are rounded by 2e-3."""


def _put(row: Row, start: Expr, level: Expr, times: float, total: tirx.Buffer) -> None:
    """Store weights e^(times (score - level)) of LANES keys and add them to the total; those of
    codes times the scales of the values, which the total is without.
    """
    with vectorized(LANES) as v:
        below = row.scores[row.at, start + v] - level
        weight = bind(m.exp_below(below if times == 1.0 else below * _f(times)))
        scale = 1 if row.scales is None else row.scales.values[row.scales.row, start + v]
        T.buffer_store(row.weights, weight * scale, [row.at, start + v])
        T.buffer_store(total, total[v] + weight, [v])


def _put_narrow(row: Row, start: Expr, level: Expr, times: float, total: tirx.Buffer) -> None:
    """Store bfloat16 weights e^(times (score - level)) of LANES keys and add them to the total as
    they are stored; those of codes times the scales of the values, which the total is without.
    Weights are no less than zero, or are NaN: they are rounded by their bits, halves up.
    """

    def all_of(value: Expr) -> Expr:
        return T.broadcast(value, LANES)

    lanes = lanes_from(start)
    x = bind((row.scores[row.at, lanes] - all_of(level)) * all_of(_f(times * math.log2(math.e))))
    n = bind(tirx.nearbyint(x))
    f = bind(x - n)
    power = all_of(_f(_POWER[0]))
    for c in _POWER[1:]:
        power = power * f + all_of(_f(c))
    scaled = weight = bind(T.call_extern("float32x16", "ferrule_power", bind(power), n, x))
    if row.scales is not None:
        scaled = weight * row.scales.values[row.scales.row, lanes]
    u = lambda k: all_of(const(k, "uint32"))  # noqa: E731
    bits = bind(tirx.op.reinterpret("uint32x16", scaled) + u(0x8000))
    high = tirx.Cast("uint16x16", tirx.op.shift_right(bits, u(16)))
    T.buffer_store(row.weights, high, [row.at, lanes])
    if row.scales is None:
        weight = tirx.op.reinterpret("float32x16", bind(tirx.op.bitwise_and(bits, u(0xFFFF0000))))
    every = lanes_from(0)
    T.buffer_store(total, total[every] + weight, [every])


def _score(
    a: Attention, work: Work, item: Item, row: Row, base: Expr, start: Expr, lane: Expr
) -> Expr:
    score = row.scores[row.at, start + lane] * _f(a.scale)
    if row.scales is not None:
        score = score * row.scales.keys[row.scales.row, start + lane]
    if a.softcap:
        score = m.tanh(score * _f(1.0 / a.softcap)) * _f(a.softcap)
    if a.bias is None and a.visible is None:
        return score
    j = bind(tirx.max(tirx.min(base + lane, item.high - i64(1)), i64(0)))
    if a.bias:
        score = score + a.bias(work, item, row.token, row.head, j)
    if a.visible:
        seen = a.visible(work, item, row.token, row.head, j)
        score = tirx.Select(seen, score, _f(NEVER))
    return score


@dataclass(frozen=True)
class Factors:
    """What rows' values before a split, and those of the split, are multiplied by."""

    before: tirx.Buffer
    split: tirx.Buffer

    @staticmethod
    def scratch(vectors: int) -> Factors:
        """For so many vectors of rows."""
        shape = (vectors, LANES)
        return Factors(T.alloc_buffer(shape, "float32"), T.alloc_buffer(shape, "float32"))


def fold_levels(into: Level, at: Expr, split: Level, vector: Expr, to: Factors, f: Expr) -> None:
    """Fold a split's levels into those before it; the factors go to vector `f` of `to`."""
    with vectorized(LANES) as v:
        before, after = bind(into.largest[at, v]), bind(split.largest[vector, v])
        largest = bind(tirx.max(before, after))
        # A row that has seen no key yet has -inf on both sides; its factors must not be NaN.
        level = bind(tirx.Select(tirx.EQ(largest, _f(NEVER)), _f(0), largest))
        old, new = m.exp_below(before - level), m.exp_below(after - level)
        T.buffer_store(into.total, into.total[at, v] * old + split.total[vector, v] * new, [at, v])
        T.buffer_store(into.largest, largest, [at, v])
        T.buffer_store(to.before, old, [f, v])
        T.buffer_store(to.split, new, [f, v])


def fold_values(
    width: int, into: Rows, split: Rows, factors: Factors, at: tuple[Expr, Expr]
) -> None:
    """The weighted values of a row with those of a split more; `width` is a multiple of LANES."""
    old, new = bind(factors.before[at]), bind(factors.split[at])
    with T.serial(i64(0), i64(width // LANES)) as o:
        e = lanes_from(o * i64(LANES))
        before = T.broadcast(old, LANES) * into.buffer[into.first, e]
        after = T.broadcast(new, LANES) * split.buffer[split.first, e]
        T.buffer_store(into.buffer, before + after, [into.first, e])


@dataclass(frozen=True)
class Totals:
    """What is known of rows so far: levels, and weighted values [row, padded width]."""

    level: Level
    values: tirx.Buffer
    per_vector: int

    @staticmethod
    def scratch(a: Attention, vectors: int, per_vector: int) -> Totals:
        """For vectors of so many rows each."""
        values = T.alloc_buffer((vectors * per_vector, padded(a)), "float32")
        return Totals(Level.scratch(vectors), values, per_vector)

    def begin(self, a: Attention, work: Work, row: Expr, head: Expr) -> None:
        """A row before any key: nothing, or the sink of its head."""
        vector = tirx.floordiv(row, i64(self.per_vector))
        lane = tirx.floormod(row, i64(self.per_vector))
        largest = cast(a.sink(work, head), "float32") if a.sink else _f(NEVER)
        self.level.put(vector, lane, largest, _f(1 if a.sink else 0))
        clear(self.values, row)

    def finish(
        self, a: Attention, work: Work, item: Item, row: Expr, source: tuple[Expr, Expr]
    ) -> None:
        """Store a row's result: weighted values over the sum of weights; zero where it sees no
        key.
        """
        vector = tirx.floordiv(row, i64(self.per_vector))
        total = bind(self.level.total[vector, tirx.floormod(row, i64(self.per_vector))])
        # Not where total > 0: a NaN stays one.
        inverse = bind(tirx.Select(tirx.EQ(total, _f(0)), _f(0), _f(1) / total))

        def element(_: Work, e: Expr) -> None:
            a.store(item, *source, e, self.values[row, e] * inverse)

        along(work, a.value_width, element)


def padded(a: Attention) -> int:
    """The values' width, up to whole vectors."""
    return -(-a.value_width // LANES) * LANES


def clear(buffer: tirx.Buffer, *row: Expr) -> None:
    """Fill a row, whole vectors wide, with zeros."""
    width = int(buffer.shape[-1])
    with T.serial(i64(0), i64(width // LANES)) as o:
        T.buffer_store(buffer, T.broadcast(_f(0), LANES), [*row, lanes_from(o * i64(LANES))])
