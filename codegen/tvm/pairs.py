"""Products of the attention template over bfloat16 keys and values, or their codes of 8 bits, which
are bfloat16 numbers too: pairs of elements at a time, by the dot instruction or by AMX tiles.

Queries, keys and values are taken as they are, weights are rounded to bfloat16 (and summed as
rounded, unless they hold the scales of codes); sums are float32. Keys are turned round by pairs
along the width; of the values, pairs of tokens lie side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from . import amx
from .attention import Attention, Item, Memory, Span
from .isa import DOT_BF16, LANES
from .loops import Work, along
from .scales import Scales
from .scores import Floats, Rows
from .values import Expr, bind, cast, const, i64, round_bf16
from .vectors import ALL, filled, lanes_from, shuffled, shuffled_alone, turned_round
from .words import Words, reads_words

PAIRS = 2 * LANES
CODES = (0, 2, 1, 3)
"""The order of four elements side by side in the sums over codes: every other byte of a vector is
what becomes bfloat16 at once.
"""
INTERLEAVED = [i + LANES * half for i in range(LANES) for half in (0, 1)]


def products_of(a: Attention) -> Floats:
    """How an attention multiplies: pairs where queries are bfloat16, keys and values bfloat16 or
    codes, all in whole vectors, and the target has instructions for them; else floats, read as
    words where they lie so.
    """
    isa = a.kernel.isa
    fits = a.width % LANES == 0 and a.value_width % LANES == 0
    floats = Words(a) if reads_words(a) else Floats(a)
    if a.memory is None or not fits or a.dtype != "bf16":
        return floats
    if {m.dtype for m in a.memory} != {"i8" if a.factors else "bf16"}:
        return floats
    if isa.has_bf16_tiles:
        return Tiles(a)
    return Pairs(a) if isa.has_bf16_dot else floats


def products_of_one(a: Attention) -> Floats:
    """How one new token of a sequence multiplies. Dot instructions read keys and values as they lie
    in memory, for which tiles want them turned round first; but tiles sum in an order of their own,
    in which a target that has one order for all rows sums everywhere. (4,096 keys of a 1B Llama,
    Granite Rapids: 13 GB/s by tiles.)
    """
    products = products_of(a)
    alone = not a.kernel.isa.one_order and streams(a) and isinstance(products, Pairs)
    return Pairs(a) if alone else products


def streams(a: Attention) -> bool:
    """Whether dot instructions take keys and values of all heads of a group as they lie."""
    fits = a.repeat <= MOST_ROWS and a.in_runs
    return fits and (a.factors is None or a.kernel.isa.has_byte_table)


MOST_ROWS = 8
"""Rows whose sums of two vectors stay in registers beside keys that are read as they lie."""


@dataclass(frozen=True)
class Pairs(Floats):
    """Products by the dot instruction."""

    weight_dtype: ClassVar[str] = "bf16"
    key_step: ClassVar[int] = PAIRS

    @property
    def steps(self) -> int:
        """Steps of sixteen pairs along the width; the last is filled up with zeros."""
        return -(-self.a.width // PAIRS)

    def memory(self, which: int) -> Memory:
        """Keys (0) or values (1) as they lie in memory."""
        assert self.a.memory is not None, self.a
        return self.a.memory[which]

    def queries(self, rows: int) -> tirx.Buffer:
        """Scratch for queries."""
        return amx.buffer((rows + amx.ROWS, self.steps * PAIRS), "uint16")

    def put_query(
        self, work: Work, item: Item, q: tirx.Buffer, r: Expr, source: tuple[Expr, Expr] | None
    ) -> None:
        """Fill a row of queries from a (token, head), or with zeros."""

        def element(inner: Work, d: Expr) -> None:
            bits: Expr = const(0, "uint16")
            if source:
                bits = round_bf16(cast(self.a.query(inner, item, *source, d), "float32"))
            T.buffer_store(q, bits, [r, d])

        along(work, self.a.width, element)
        if self.a.factors is not None:
            with T.serial(i64(0), i64(self.a.width // LANES)) as o:
                lanes = lanes_from(o * i64(LANES))
                T.buffer_store(q, _by_fours(bind(q[r, lanes]), LANES), [r, lanes])
        if self.a.width % PAIRS:
            zero = T.broadcast(const(0, "uint16"), LANES)
            T.buffer_store(q, zero, [r, lanes_from(self.a.width)])

    def keys(self, runs: int) -> tirx.Buffer:
        """Scratch for keys turned round: [run, pair of the width, key], two elements a lane."""
        return amx.buffer((runs, self.steps * LANES, LANES), "int32")

    def turn_keys(self, work: Work, item: Item, kt: tirx.Buffer, run: Expr, start: Expr) -> None:
        """Turn round the keys start, start + 1, ... into a run."""
        slot = [bind(s) for s in map(self.a.places(item, start), range(LANES))]
        whole, half = divmod(self.a.width, PAIRS)
        with T.serial(i64(0), i64(whole)) as o:
            rows = [self._pairs(item, s, o * i64(PAIRS), PAIRS) for s in slot]
            for k, column in enumerate(turned_round(rows)):
                T.buffer_store(kt, column, [run, o * i64(LANES) + i64(k), lanes_from(0)])
        if half:
            rows = [self._pairs(item, s, i64(whole * PAIRS), LANES) for s in slot]
            for k, column in enumerate(turned_round(rows)):
                T.buffer_store(kt, column, [run, i64(whole * LANES + k), lanes_from(0)])

    def _pairs(self, item: Item, slot: Expr, start: Expr, count: int) -> tirx.Buffer:
        """Elements of a key as sixteen pairs, zeros behind the first `count`."""
        bits = self._bits(0, item, slot, lanes_from(start, count))
        if self.a.factors is not None:
            bits = _by_fours(bits, count)
        if count < PAIRS:
            nothing = T.broadcast(const(0, "uint16"), count)
            bits = shuffled(bits, nothing, list(range(PAIRS)))
        row = T.alloc_buffer((LANES,), "int32")
        T.buffer_store(row, tirx.op.reinterpret("int32x16", bits), [ALL])
        return row

    def _bits(self, which: int, item: Item, slot: Expr, lanes: Expr) -> Expr:
        """Elements of a key or a value as the bits of bfloat16 numbers; a code is one exactly."""
        memory = self.memory(which)
        x = memory.buffer[slot, item.group, lanes]
        if memory.dtype == "bf16":
            return x
        count = int(lanes.lanes)
        wide = tirx.op.reinterpret(f"uint32x{count}", tirx.Cast(f"float32x{count}", x))
        return tirx.Cast(f"uint16x{count}", wide >> T.broadcast(const(16, "uint32"), count))

    def scales(self, groups: int) -> Scales | None:
        """Scratch for the scales of codes."""
        return None if self.a.factors is None else Scales.scratch(self.a, groups)

    def weights(self, scores: tirx.Buffer) -> tirx.Buffer:
        """Scratch for weights, beside the scores."""
        return amx.buffer(tuple(scores.shape), "uint16")

    def value_scratch(self, keys: int) -> tirx.Buffer:
        """Scratch for the values of so many keys: [step of 32, column vector, pair, lane]."""
        vectors = self.a.value_width // LANES
        return amx.buffer((keys // PAIRS, vectors, LANES, PAIRS), "uint16")

    def put_values(self, item: Item, to: tirx.Buffer, step: Expr, start: Expr) -> None:
        """Lay out the values of 32 keys from `start` on by pairs of keys."""
        begin = i64(self.memory(1).start)
        for run in range(2):
            first = bind(start + i64(run * LANES))
            slot = self.a.places(item, first, only_own=True)
            with T.serial(i64(0), i64(LANES // 2)) as p:
                two = [bind(slot(p * i64(2) + i64(k))) for k in (0, 1)]
                with T.serial(i64(0), i64(self.a.value_width // LANES)) as c:
                    at = lanes_from(c * i64(LANES) + begin)
                    even, odd = (self._bits(1, item, s, at) for s in two)
                    pair = [step, c, p + i64(run * LANES // 2), lanes_from(0, PAIRS)]
                    T.buffer_store(to, shuffled(even, odd, INTERLEAVED), pair)

    def score(self, q: Rows, kt: tirx.Buffer, run: Expr, vectors: int, to: Rows, at: Expr) -> None:
        """to[r, at + 16 c + lane] = q[r] . k[16 (run + c) + lane] for so many vectors."""
        self.a.kernel.snippets.add(DOT_BF16)
        sums = [[filled(0) for _ in range(vectors)] for _ in range(q.count)]
        with T.serial(i64(0), i64(self.steps * LANES)) as d:
            k = [
                bind(tirx.op.reinterpret("int16x32", kt[run + i64(c), d, lanes_from(0)]))
                for c in range(vectors)
            ]
            for r, row in enumerate(sums):
                x = pair(q.buffer, q.at(r), d)
                for total, value in zip(row, k, strict=True):
                    dot(total, value, x)
        for r, row in enumerate(sums):
            for c, total in enumerate(row):
                lanes = lanes_from(at + i64(c * LANES))
                T.buffer_store(to.buffer, total[ALL], [to.at(r), lanes])

    def accumulate(
        self,
        work: Work,
        item: Item,
        weights: Rows,
        span: Span,
        to: Rows,
        values: tirx.Buffer | None = None,
        first: Expr | int = 0,
    ) -> None:
        """to[r] += sum_j weights[r, j] v[j] over a span of keys; `values` begins with key `first`
        of the split.
        """
        assert values is not None, self.a
        vectors = self.columns_of(to.count)
        whole, left = divmod(self.a.value_width // LANES, vectors)
        if whole:
            with T.serial(i64(0), i64(whole)) as o:
                start = bind(o * i64(vectors))
                self._dots(
                    weights, span, to, values, first, [start + i64(c) for c in range(vectors)]
                )
        if left:
            chosen = [i64(whole * vectors + c) for c in range(left)]
            self._dots(weights, span, to, values, first, chosen)

    def _dots(
        self,
        weights: Rows,
        span: Span,
        to: Rows,
        values: tirx.Buffer,
        first: Expr | int,
        columns: list[Expr],
    ) -> None:
        sums = [[filled(0) for _ in columns] for _ in range(to.count)]
        place = [lanes_from(c * i64(LANES)) for c in columns]
        for r, row in enumerate(sums):
            for at, total in zip(place, row, strict=True):
                T.buffer_store(total, to.buffer[to.at(r), at], [ALL])
        with T.serial(*span.blocks(PAIRS)) as step, T.serial(i64(0), i64(LANES)) as p:
            own = bind(step - tirx.floordiv(i64(first), i64(PAIRS)))
            v = [
                bind(tirx.op.reinterpret("int16x32", values[own, c, p, lanes_from(0, PAIRS)]))
                for c in columns
            ]
            for r, row in enumerate(sums):
                x = pair(weights.buffer, weights.at(r), bind(step * i64(LANES) + p))
                for total, value in zip(row, v, strict=True):
                    dot(total, value, x)
        for r, row in enumerate(sums):
            for at, total in zip(place, row, strict=True):
                T.buffer_store(to.buffer, total[ALL], [to.at(r), at])


def _by_fours(x: Expr, count: int) -> Expr:
    """So many elements in the order of codes."""
    return shuffled_alone(x, [first + i for first in range(0, count, 4) for i in CODES])


def pair(buffer: tirx.Buffer, row: Expr, at: Expr) -> Expr:
    """Two bfloat16 of a row, the same in all lanes."""
    two = tirx.op.reinterpret("int32", buffer[row, lanes_from(at * i64(2), 2)])
    return bind(tirx.op.reinterpret("int16x32", T.broadcast(two, LANES)))


def dot(total: tirx.Buffer, x: Expr, y: Expr) -> None:
    """Add the products of pairs to a vector of sums."""
    value = T.call_extern("float32x16", "ferrule_dot_bf16", total[ALL], x, y)
    T.buffer_store(total, value, [ALL])


@dataclass(frozen=True)
class Tiles(Pairs):
    """Products by AMX: a tile of weights or queries is up to sixteen rows of 32 elements."""

    @contextmanager
    def ready(self, rows: int) -> Iterator[None]:
        """Around the statements that take products of tiles of so many rows."""
        with amx.configured(rows=rows):
            yield

    def matrix(self, rows: int | Expr, columns: int) -> tirx.Buffer:
        """Scratch of float32 for results."""
        return amx.buffer((rows, columns), "float32")

    def tile_of(self, rows: int) -> int:
        """Rows of a tile where there are so many: all tiles are alike."""
        return max(n for n in range(1, amx.ROWS + 1) if rows % n == 0)

    @property
    def row_tile(self) -> int:
        """Rows of a tile where rows are filled up."""
        return amx.ROWS

    def vectors_of(self, rows: int) -> int:
        """Vectors of keys that a tile of rows takes at a time."""
        return len(amx.SUMS)

    def columns_of(self, rows: int) -> int:
        """Vectors of values that a tile of rows takes at a time."""
        return len(amx.SUMS)

    def score(self, q: Rows, kt: tirx.Buffer, run: Expr, vectors: int, to: Rows, at: Expr) -> None:
        """to[r, at + 16 c + lane] = q[r] . k[16 (run + c) + lane] for so many vectors."""
        x, w = amx.X[0], amx.W
        for c in range(vectors):
            amx.zero(amx.SUMS[c])
        with T.serial(i64(0), i64(self.steps)) as s:
            amx.load(x, q.buffer[q.first, s * i64(PAIRS)], self.steps * PAIRS * 2)
            for c in range(vectors):
                amx.load(w[c % 2], kt[run + i64(c), s * i64(LANES), i64(0)])
                amx.multiply("tdpbf16ps", amx.SUMS[c], x, w[c % 2])
        stride = int(to.buffer.shape[1]) * 4
        for c in range(vectors):
            amx.store(amx.SUMS[c], to.buffer[to.first, at + i64(c * LANES)], stride)

    def _dots(
        self,
        weights: Rows,
        span: Span,
        to: Rows,
        values: tirx.Buffer,
        first: Expr | int,
        columns: list[Expr],
    ) -> None:
        x, w = amx.X[0], amx.W
        stride, below = int(to.buffer.shape[1]) * 4, int(weights.buffer.shape[1]) * 2
        for i, c in enumerate(columns):
            amx.load(amx.SUMS[i], to.buffer[to.first, c * i64(LANES)], stride)
        with T.serial(*span.blocks(PAIRS)) as step:
            own = bind(step - tirx.floordiv(i64(first), i64(PAIRS)))
            amx.load(x, weights.buffer[weights.first, step * i64(PAIRS)], below)
            for i, c in enumerate(columns):
                amx.load(w[i % 2], values[own, c, i64(0), i64(0)])
                amx.multiply("tdpbf16ps", amx.SUMS[i], x, w[i % 2])
        for i, c in enumerate(columns):
            amx.store(amx.SUMS[i], to.buffer[to.first, c * i64(LANES)], stride)
