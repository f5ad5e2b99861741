"""Decode over bfloat16 keys and values as they lie in memory: each is read once and goes from there
into the dot instruction, for all query heads of its group.

Sums are made in the order of pairs.py, so that a row is the same whatever computes it. Eight
elements of sixteen keys are four vectors of quarters, which two stages of shuffles turn round.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .attention import Item, Span
from .isa import DOT_BF16, LANES
from .pairs import INTERLEAVED, PAIRS, Pairs, dot, pair
from .scores import Rows
from .values import Expr, bind, i64
from .vectors import ALL, filled, lanes_from, turned_in_quarters

RUNS = 2
"""Runs of LANES keys that are scored at a time."""
MOST_ROWS = 8
"""Rows whose sums of RUNS vectors stay in registers beside the keys."""
_SUMS = 24
"""Vectors of sums of weighted values that stay in registers beside the values."""
_QUARTER = 8

Ask = Callable[[int], None]


def score_streamed(
    products: Pairs, item: Item, q: Rows, start: Expr, to: Rows, at: Expr, ask: Ask
) -> None:
    """to[r, at + i] = q[r] . k[start + i] for RUNS * LANES keys; asks for as many lines."""
    a = products.a
    a.kernel.snippets.add(DOT_BF16)
    slots = [bind(a.places(item, bind(start + i64(n * LANES)))(0)) for n in range(RUNS)]
    sums = [[filled(0) for _ in slots] for _ in range(q.count)]
    lines = RUNS * LANES * _QUARTER * 2 // 64
    with T.serial(i64(0), i64(a.width // _QUARTER)) as c:
        ask(lines)
        keys = [_four_pairs(products, item, s, bind(c * i64(_QUARTER))) for s in slots]
        for j in range(_QUARTER // 2):
            k = [bind(tirx.op.reinterpret("int16x32", four[j])) for four in keys]
            for r, row in enumerate(sums):
                x = pair(q.buffer, q.at(r), c * i64(_QUARTER // 2) + i64(j))
                for total, value in zip(row, k, strict=True):
                    dot(total, value, x)
    for r, row in enumerate(sums):
        for n, total in enumerate(row):
            T.buffer_store(to.buffer, total[ALL], [to.at(r), lanes_from(at + i64(n * LANES))])


def _four_pairs(products: Pairs, item: Item, slot: Expr, start: Expr) -> list[Expr]:
    """Pairs start / 2 ... of LANES keys, a key a lane."""
    buffer = products.memory(0).buffer
    rows: list[tirx.Buffer] = []
    for first in range(4):
        parts = [
            buffer[slot + i64(first + 4 * q), item.group, lanes_from(start, _QUARTER)]
            for q in range(4)
        ]
        four = tirx.Shuffle(parts, [tirx.IntImm("int32", i) for i in range(PAIRS)])
        row = T.alloc_buffer((LANES,), "int32")
        T.buffer_store(row, tirx.op.reinterpret("int32x16", four), [ALL])
        rows.append(row)
    return turned_in_quarters(rows)


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
    a, memory = products.a, products.memory(1)
    sums = [[filled(0) for _ in columns] for _ in range(to.count)]
    place = [lanes_from(c * i64(LANES)) for c in columns]
    for r, row in enumerate(sums):
        for at, total in zip(place, row, strict=True):
            T.buffer_store(total, to.buffer[to.at(r), at], [ALL])
    first, last = span.blocks(PAIRS)
    with T.serial(first * i64(2), last * i64(2)) as run:
        slot = a.places(item, bind(span.base + run * i64(LANES)), only_own=True)
        with T.serial(i64(0), i64(LANES // 2)) as p:
            ask(len(columns))
            two = [bind(slot(p * i64(2) + i64(k))) for k in (0, 1)]
            values = []
            for c in columns:
                lanes = lanes_from(c * i64(LANES) + i64(memory.start))
                even, odd = (memory.buffer[s, item.group, lanes] for s in two)
                both = tirx.Shuffle([even, odd], [tirx.IntImm("int32", i) for i in INTERLEAVED])
                values.append(bind(tirx.op.reinterpret("int16x32", both)))
            for r, row in enumerate(sums):
                x = pair(weights.buffer, weights.at(r), bind(run * i64(LANES // 2) + p))
                for total, value in zip(row, values, strict=True):
                    dot(total, value, x)
    for r, row in enumerate(sums):
        for at, total in zip(place, row, strict=True):
            T.buffer_store(to.buffer, total[ALL], [to.at(r), at])
