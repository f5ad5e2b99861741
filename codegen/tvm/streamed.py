"""Decode over bfloat16 keys and values, or codes of them, as they lie in memory: each is read once
and goes from there into the dot instruction, for all query heads of its group.

Sums are made in the order of pairs.py, so that a row is the same whatever computes it. Sixteen
bytes of each of sixteen keys are four vectors of quarters, which two stages of shuffles turn round;
codes become bfloat16 behind them (byte_table.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .attention import Attention, Item, Span
from .byte_table import pairs_of_codes
from .fetch import LINE
from .isa import DOT_BF16, LANES
from .loops import Work
from .pairs import CODES, INTERLEAVED, PAIRS, Pairs, dot, pair
from .quarters import QUARTER, joined, quarter_of, turned_words
from .scores import Rows
from .values import Expr, bind, bytes_of, i64
from .vectors import ALL, filled, lanes_from, shuffled, shuffled_alone

_SUMS = 24
"""Vectors of sums of weighted values that stay in registers beside the values."""
Ask = Callable[[int], None]


@dataclass(frozen=True)
class PairStream:
    """Keys and values of one new token as they come from memory, for all heads of a group."""

    products: Pairs

    @property
    def keys(self) -> int:
        """Keys that are scored at a time."""
        return runs_of(self.products.a) * LANES

    @property
    def stretch(self) -> int:
        """Keys whose values of a group are read before the next group's."""
        return self.products.a.space.stream

    @property
    def reach(self) -> int:
        """Keys that are to be asked for before the first of them is read: as many as come to be."""
        return 0

    def score(
        self, work: Work, item: Item, q: Rows, start: Expr, to: Rows, at: Expr, ask: Ask
    ) -> None:
        """to[r, at + i] = q[r] . k[start + i] for all of them; asks for as many lines."""
        score_streamed(self.products, item, q, start, to, at, ask)

    def accumulate(self, item: Item, weights: Rows, span: Span, to: Rows, ask: Ask) -> None:
        """to[r] += sum_j weights[r, j] v[j] over a span of keys; asks for as many lines."""
        accumulate_streamed(self.products, item, weights, span, to, ask)

    def settle(self, to: Rows) -> None:
        """Nothing: rows are in order."""


def runs_of(a: Attention) -> int:
    """Runs of LANES keys that are scored at a time: of codes one, which fills more registers."""
    return 2 if a.factors is None else 1


def score_streamed(
    products: Pairs, item: Item, q: Rows, start: Expr, to: Rows, at: Expr, ask: Ask
) -> None:
    """to[r, at + i] = q[r] . k[start + i] for LANES keys of each run; asks for as many lines."""
    a = products.a
    a.kernel.snippets.add(DOT_BF16)
    slots = [bind(a.places(item, bind(start + i64(n * LANES)))(0)) for n in range(runs_of(a))]
    sums = [[filled(0) for _ in slots] for _ in range(q.count)]
    memory = products.memory(0)
    size = quarter_of(memory)
    with T.serial(i64(0), i64(a.width // size)) as c:
        ask(len(slots) * LANES * QUARTER // LINE)
        first = bind(c * i64(size))
        fours = [turned_words(memory, item, _side_by_side(s), first) for s in slots]
        for j in range(size // 2):
            k = [_pair_of_keys(products, four, j) for four in fours]
            for r, row in enumerate(sums):
                x = pair(q.buffer, q.at(r), c * i64(size // 2) + i64(j))
                for total, value in zip(row, k, strict=True):
                    dot(total, value, x)
    for r, row in enumerate(sums):
        for n, total in enumerate(row):
            T.buffer_store(to.buffer, total[ALL], [to.at(r), lanes_from(at + i64(n * LANES))])


def _side_by_side(slot: Expr) -> list[Expr]:
    """The slots of LANES keys."""
    return [slot + i64(i) for i in range(LANES)]


def _pair_of_keys(products: Pairs, four: list[Expr], j: int) -> Expr:
    """Pair j of what was turned round."""
    if products.memory(0).dtype == "bf16":
        return bind(tirx.op.reinterpret("int16x32", four[j]))
    codes = tirx.op.reinterpret("int8x64", four[j // 2])
    return pairs_of_codes(products.a.kernel, codes, j % 2)


def accumulate_streamed(
    products: Pairs, item: Item, weights: Rows, span: Span, to: Rows, ask: Ask
) -> None:
    """to[r] += sum_j weights[r, j] v[j] over the steps of PAIRS keys that hold a span; asks for as
    many lines as it reads.
    """
    a = products.a
    vectors = a.value_width // LANES
    passes = -(-vectors // max(1, _SUMS // to.count))
    size = -(-vectors // passes)
    whole, left = divmod(vectors, size)
    with T.serial(i64(0), i64(whole)) as o:
        first = bind(o * i64(size))
        columns = [first + i64(c) for c in range(size)]
        _dots(products, item, weights, span, to, columns, ask)
    if left:
        columns = [i64(whole * size + c) for c in range(left)]
        _dots(products, item, weights, span, to, columns, ask)


def _dots(
    products: Pairs,
    item: Item,
    weights: Rows,
    span: Span,
    to: Rows,
    columns: list[Expr],
    ask: Ask,
) -> None:
    a = products.a
    sums = [[filled(0) for _ in columns] for _ in range(to.count)]
    place = [lanes_from(c * i64(LANES)) for c in columns]
    for r, row in enumerate(sums):
        for at, total in zip(place, row, strict=True):
            T.buffer_store(total, to.buffer[to.at(r), at], [ALL])
    first, last = span.blocks(PAIRS)
    keys = 4 // int(bytes_of(products.memory(1).dtype))
    with T.serial(first * i64(2), last * i64(2)) as run:
        # Weights of keys that are not there are zero: so is their product with any code.
        own = a.factors is None
        slot = a.places(item, bind(span.base + run * i64(LANES)), only_own=own)
        with T.serial(i64(0), i64(LANES // keys)) as p:
            ask(len(columns))
            slots = [bind(slot(p * i64(keys) + i64(k))) for k in range(keys)]
            values = [_pairs_of_values(products, item, slots, c) for c in columns]
            for n in range(keys // 2):
                at = bind(run * i64(LANES // 2) + p * i64(keys // 2) + i64(n))
                for r, row in enumerate(sums):
                    x = pair(weights.buffer, weights.at(r), at)
                    for total, value in zip(row, values, strict=True):
                        dot(total, value[n], x)
    for r, row in enumerate(sums):
        for at, total in zip(place, row, strict=True):
            T.buffer_store(to.buffer, total[ALL], [to.at(r), at])


def _pairs_of_values(products: Pairs, item: Item, slots: list[Expr], column: Expr) -> list[Expr]:
    """LANES elements of two tokens, or of the codes of four, as pairs of tokens side by side."""
    memory = products.memory(1)
    lanes = lanes_from(column * i64(LANES) + i64(memory.start))
    if memory.dtype == "bf16":
        even, odd = (memory.buffer[s, item.group, lanes] for s in slots)
        return [bind(tirx.op.reinterpret("int16x32", shuffled(even, odd, INTERLEAVED)))]
    codes = joined(memory, item, slots, lanes)
    order = [LANES * token + i for i in range(LANES) for token in CODES]
    turned = bind(shuffled_alone(codes, order))
    return [pairs_of_codes(products.a.kernel, turned, n) for n in range(2)]
