"""Products in float32 of keys and values that lie in memory in whole quarters of vectors, for
targets that have no instruction for pairs of bfloat16: floats of 16 or 32 bits, or codes of 8.

Keys are turned round as they are, in words of 32 bits, and become float32 where they are
multiplied: what goes through memory on the way is no more than the keys themselves. One new token
reads values as they lie; for many they are widened once for each split.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .attention import Attention, Item, Memory, Span
from .fetch import LINE
from .isa import LANES
from .loops import Work
from .quarters import quarter_of, turned_elements, turned_words
from .scales import Scales
from .scores import Floats, Rows, by_tiles
from .values import Expr, bind, bytes_of, const, i64
from .vectors import ALL, filled, lanes_from, shuffled_alone

Ask = Callable[[int], None]
Add = Callable[[Expr, list[Expr]], None]
"""Adds key j's values, a vector for each column, to the rows."""
Over = Callable[[list[Expr], Add], None]
"""Adds all keys' values of some columns."""

PER_WORD = {"f32": 1, "f16": 1, "bf16": 2, "i8": 4}
"""Elements of a key in a lane of a vector that is turned round; those of f16 are 16 bits wide,
which the conversion to float32 takes side by side.
"""

_EVEN_FIRST = [i // 2 + LANES // 2 * (i % 2) for i in range(LANES)]
"""Where elements lie in a vector that has the even ones first."""


def reads_words(a: Attention) -> bool:
    """Whether keys and values of an attention lie in memory in whole quarters of vectors."""
    if a.memory is None or a.value_width % LANES:
        return False
    fits = {m.dtype for m in a.memory} <= ({"i8"} if a.factors else {"f32", "f16", "bf16"})
    return fits and a.width % quarter_of(a.memory[0]) == 0


@dataclass(frozen=True)
class Asks:
    """How products ask for memory while they compute: for a line or two at a time, evenly. A core
    has room for a few dozen requests; behind a batch of them its own reads wait, and nothing
    overlaps. `shares`: how often keys and values are gone over, each time with a share of the
    lines; `turning`: lines of four keys' words that are asked for while they are turned round.
    """

    ask: Ask
    shares: int
    turning: int

    @staticmethod
    def of(ask: Ask, rows: int, tile: int) -> Asks:
        """For so many rows, by tiles of so many: turning keys takes as long as to multiply them by
        a row or two.
        """
        return Asks(ask, -(-rows // tile), {1: 3, 2: 2, 3: 1, 4: 1}.get(rows, 0))

    def steps(self) -> tuple[int, int]:
        """Words that are multiplied in a step, and the lines of each run to ask for before."""
        return (4, 4 - self.turning) if self.turning else (self.shares, 1)


@dataclass(frozen=True)
class Words(Floats):
    """Products of float32 over words."""

    def memory(self, which: int) -> Memory:
        """Keys (0) or values (1) as they lie in memory."""
        assert self.a.memory is not None, self.a
        return self.a.memory[which]

    @property
    def per_word(self) -> int:
        """Elements of a key in a lane."""
        return PER_WORD[self.memory(0).dtype]

    def scales(self, groups: int) -> Scales | None:
        """Scratch for the scales of codes."""
        return None if self.a.factors is None else Scales.scratch(self.a, groups)

    def keys(self, runs: int) -> tirx.Buffer:
        """Scratch for keys turned round: [run, word of the width, key]."""
        dtype = "uint16" if self.memory(0).dtype == "f16" else "int32"
        return T.alloc_buffer((runs, self.a.width // self.per_word, LANES), dtype)

    def turn_keys(
        self,
        work: Work,
        item: Item,
        kt: tirx.Buffer,
        run: Expr,
        start: Expr,
        asks: Asks | None = None,
    ) -> None:
        """Turn round the keys start, start + 1, ... into a run."""
        memory = self.memory(0)
        turned = turned_elements if memory.dtype == "f16" else turned_words
        size = quarter_of(memory)
        slots = [bind(s) for s in map(self.a.places(item, start), range(LANES))]
        with T.serial(i64(0), i64(self.a.width // size)) as c:
            if asks is not None and asks.turning:
                asks.ask(asks.turning)
            columns = turned(memory, item, slots, bind(c * i64(size)))
            first = bind(c * i64(len(columns)))
            for k, column in enumerate(columns):
                T.buffer_store(kt, column, [run, first + i64(k), lanes_from(0)])

    def score(
        self,
        q: Rows,
        kt: tirx.Buffer,
        run: Expr,
        vectors: int,
        to: Rows,
        at: Expr,
        asks: Asks | None = None,
    ) -> None:
        """to[r, at + 16 c + lane] = q[r] . k[16 (run + c) + lane] for so many vectors."""
        words = self.a.width // self.per_word
        sums = [[filled(0) for _ in range(vectors)] for _ in range(q.count)]
        # A line is 32 bits of LANES keys.
        step, lines = asks.steps() if asks is not None else (1, 0)
        step *= 2 if self.memory(0).dtype == "f16" else 1
        whole, rest = divmod(words, step)
        with T.serial(i64(0), i64(whole)) as o:
            if asks is not None:
                asks.ask(vectors * lines)
            for u in range(step):
                self._multiply(q, kt, run, bind(o * i64(step) + i64(u)), sums)
        for u in range(words - rest, words):
            self._multiply(q, kt, run, i64(u), sums)
        for r, row in enumerate(sums):
            for c, total in enumerate(row):
                T.buffer_store(to.buffer, total[ALL], [to.at(r), lanes_from(at + i64(c * LANES))])

    def _multiply(
        self, q: Rows, kt: tirx.Buffer, run: Expr, word: Expr, sums: list[list[tirx.Buffer]]
    ) -> None:
        """Add the products of a word of each key."""
        words = [bind(kt[run + i64(c), word, lanes_from(0)]) for c in range(len(sums[0]))]
        for e in range(self.per_word):
            k = [bind(_element(self.memory(0).dtype, w, e)) for w in words]
            for r, row in enumerate(sums):
                d = word * i64(self.per_word) + i64(e)
                x = bind(T.broadcast(q.buffer[q.at(r), d], LANES))
                for total, value in zip(row, k, strict=True):
                    T.buffer_store(total, total[ALL] + x * value, [ALL])

    def value_scratch(self, keys: int) -> tirx.Buffer | None:
        """Scratch for the values of so many keys: [column vector, key, lane]."""
        return T.alloc_buffer((self.a.value_width // LANES, keys, LANES), "float32")

    def put_values(self, item: Item, to: tirx.Buffer, step: Expr, start: Expr) -> None:
        """Lay out the values of LANES keys from `start` on, widened."""
        slot = self.a.places(item, start, only_own=True)
        with T.serial(i64(0), i64(LANES)) as i:
            own = bind(slot(i))
            with T.serial(i64(0), i64(self.a.value_width // LANES)) as c:
                value = self._in_order(self._values(item, own, c))
                T.buffer_store(to, value, [c, step * i64(LANES) + i, lanes_from(0)])

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
        """to[r] += sum_j weights[r, j] v[j] over a span of keys, whose values lie widened."""
        assert values is not None, self.a

        def over(columns: list[Expr], add: Add) -> None:
            with T.serial(span.begin, span.end) as j:
                at = bind(j - i64(first))
                add(j, [bind(values[c, at, lanes_from(0)]) for c in columns])

        self._by_columns(weights, to, over)

    def accumulate_streamed(
        self, item: Item, weights: Rows, span: Span, to: Rows, asks: Asks
    ) -> None:
        """to[r] += sum_j weights[r, j] v[j] over the runs of LANES keys that hold a span, whose
        values are read as they lie. The rows are in order after `settle`.
        """

        def over(columns: list[Expr], add: Add) -> None:
            size = int(bytes_of(self.memory(1).dtype)) * LANES * len(columns)
            # Keys at a time, and the lines that they take: two where a key takes less.
            keys = min(4, 1 << max(1, min(LANES, 2 * LINE * asks.shares // size)).bit_length() - 1)
            lines = -(-keys * size // (LINE * asks.shares))

            def key(j: Expr, slot: Expr) -> None:
                add(j, [self._values(item, slot, c) for c in columns])

            with T.serial(*span.blocks(LANES)) as run:
                start = bind(run * i64(LANES))
                slot = self.a.places(item, bind(span.base + start))
                count = bind(tirx.min(span.end - start, i64(LANES)))
                whole = bind(tirx.truncdiv(count, i64(keys)))
                with T.serial(i64(0), whole) as p:
                    asks.ask(lines)
                    for k in range(keys):
                        i = bind(p * i64(keys) + i64(k))
                        key(bind(start + i), bind(slot(i)))
                if keys > 1:
                    with T.serial(whole * i64(keys), count) as i:
                        key(bind(start + i), bind(slot(i)))

        self._by_columns(weights, to, over)

    def settle(self, to: Rows) -> None:
        """Bring a row of values that were accumulated as they lie into order."""
        if self.memory(1).dtype != "bf16":
            return
        with T.serial(i64(0), i64(self.a.value_width // LANES)) as c:
            place = [to.first, lanes_from(c * i64(LANES))]
            T.buffer_store(
                to.buffer, shuffled_alone(bind(to.buffer[tuple(place)]), _EVEN_FIRST), place
            )

    def _by_columns(
        self,
        weights: Rows,
        to: Rows,
        over: Over,
    ) -> None:
        """Rows of weighted values, so many vectors of columns at a time as stay in registers."""
        vectors = self.a.value_width // LANES
        passes = -(-vectors // self.columns_of(to.count))
        size = -(-vectors // passes)
        whole, left = divmod(vectors, size)
        with T.serial(i64(0), i64(whole)) as o:
            first = bind(o * i64(size))
            _weighed(weights, to, [first + i64(c) for c in range(size)], over)
        if left:
            _weighed(weights, to, [i64(whole * size + c) for c in range(left)], over)

    def _values(self, item: Item, slot: Expr, column: Expr) -> Expr:
        """A vector of a token's values as float32; of bfloat16 the even elements come first, which
        takes no more than a shift and a mask.
        """
        memory = self.memory(1)
        x = memory.buffer[slot, item.group, lanes_from(column * i64(LANES) + i64(memory.start))]
        if memory.dtype != "bf16":
            return bind(x if memory.dtype == "f32" else tirx.Cast(f"float32x{LANES}", x))
        words = T.bind(tirx.op.reinterpret(f"int32x{LANES // 2}", x))
        halves = [_element("bf16", words, e) for e in (0, 1)]
        return bind(tirx.Shuffle(halves, [tirx.IntImm("int32", i) for i in range(LANES)]))

    def _in_order(self, values: Expr) -> Expr:
        return values if self.memory(1).dtype != "bf16" else shuffled_alone(values, _EVEN_FIRST)


def _weighed(
    weights: Rows,
    to: Rows,
    columns: list[Expr],
    over: Over,
) -> None:
    sums = [[filled(0) for _ in columns] for _ in range(to.count)]
    place = [lanes_from(c * i64(LANES)) for c in columns]
    for r, row in enumerate(sums):
        for at, total in zip(place, row, strict=True):
            T.buffer_store(total, to.buffer[to.at(r), at], [ALL])

    def add(j: Expr, values: list[Expr]) -> None:
        for r, row in enumerate(sums):
            weight = bind(T.broadcast(weights.buffer[weights.at(r), j], LANES))
            for total, value in zip(row, values, strict=True):
                T.buffer_store(total, total[ALL] + weight * value, [ALL])

    over(columns, add)
    for r, row in enumerate(sums):
        for at, total in zip(place, row, strict=True):
            T.buffer_store(to.buffer, total[ALL], [to.at(r), at])


def _element(dtype: str, words: Expr, e: int) -> Expr:
    """Element e of words as float32."""
    _, _, lanes = str(words.ty.dtype if hasattr(words.ty, "dtype") else words.ty).partition("x")
    count, kind = int(lanes), f"float32x{lanes}"

    def all_of(value: int) -> Expr:
        return T.broadcast(const(value, "int32"), count)

    if dtype == "f16":
        return tirx.Cast(kind, tirx.op.reinterpret(f"float16x{count}", words))
    if dtype == "f32":
        return tirx.op.reinterpret(kind, words)
    if dtype == "bf16":
        high = tirx.op.bitwise_and(words, all_of(-1 << 16)) if e else words << all_of(16)
        return tirx.op.reinterpret(kind, high)
    return tirx.Cast(kind, (words << all_of(24 - 8 * e)) >> all_of(24))


@dataclass(frozen=True)
class WordStream:
    """Keys and values of one new token as they come from memory, for all heads of a group."""

    products: Words
    kt: tirx.Buffer

    @staticmethod
    def of(products: Words) -> WordStream:
        """With scratch for the keys that are scored at a time."""
        return WordStream(products, products.keys(_runs(products)))

    @property
    def keys(self) -> int:
        """Keys that are scored at a time."""
        return _runs(self.products) * LANES

    @property
    def stretch(self) -> int:
        """Keys whose values of a group are read before the next group's: more would have to be
        asked for further ahead.
        """
        return self.keys

    @property
    def reach(self) -> int:
        """Keys that are to be asked for before the first of them is read."""
        return self.keys

    def score(
        self, work: Work, item: Item, q: Rows, start: Expr, to: Rows, at: Expr, ask: Ask
    ) -> None:
        """to[r, at + i] = q[r] . k[start + i] for all of them; asks for as many lines."""
        products, runs = self.products, _runs(self.products)
        asks = self._asks(q.count, ask)
        with T.serial(i64(0), i64(runs)) as run:
            first = bind(start + run * i64(LANES))
            products.turn_keys(work, item, self.kt, run, first, asks)

        def tile(mine: Rows, into: Rows) -> None:
            vectors = min(runs, products.vectors_of(mine.count))
            for run in range(0, runs, vectors):
                place = bind(at + i64(run * LANES))
                products.score(mine, self.kt, i64(run), vectors, into, place, asks)

        by_tiles(products.tile_of(q.count), q, to, tile)

    def accumulate(self, item: Item, weights: Rows, span: Span, to: Rows, ask: Ask) -> None:
        """to[r] += sum_j weights[r, j] v[j] over a span of keys; asks for as many lines."""
        asks = self._asks(to.count, ask)

        def tile(mine: Rows, into: Rows) -> None:
            self.products.accumulate_streamed(item, mine, span, into, asks)

        by_tiles(self.products.tile_of(to.count), weights, to, tile)

    def _asks(self, rows: int, ask: Ask) -> Asks:
        return Asks.of(ask, rows, self.products.tile_of(rows))

    def settle(self, to: Rows) -> None:
        """Bring a row that values were accumulated into into order."""
        self.products.settle(to)


def _runs(products: Words) -> int:
    """Runs of LANES keys that are scored at a time: more than one where there are few rows, whose
    sums would wait for one another.
    """
    return 2 if products.vectors_of(products.a.repeat) > 1 else 1
