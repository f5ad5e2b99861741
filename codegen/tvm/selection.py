"""The selection template: which keys of a sequence an indexer picks for each query.

Scores of a stretch of keys, of all heads of a query at once, are made by the register tiles of the
attention template and summed over the heads. A row keeps them as ranks: whole numbers in the order
of the scores. The rank of the last key picked is found a byte at a time from the top (a radix
selection), and what lies above it is written in the order of the keys, equals first come first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...ir.node import Node
from .attention import Attention, Item, pulled_once
from .function import Anchor, Kernel
from .isa import LANES
from .loops import Place
from .paged import Batch, seen_keys, slots_view
from .scores import Floats, Rows
from .values import Expr, bind, cast, const, i64, vectorized

ROWS = 64
"""Queries whose ranks are held at a time."""
KEYS = 256
"""Keys of a work item."""
STREAM = 64
"""Keys that are turned round before all heads pass over them."""
BYTES = (24, 16, 8, 0)


@dataclass(frozen=True)
class _Selection:
    """A selection under construction: the scores as an attention's, and the ranks of ROWS rows."""

    kernel: Kernel
    node: Node
    batch: Batch
    attention: Attention
    ranks: tirx.Buffer

    def item(self, row: Expr) -> Item:
        """A query as an item of one token: its sequence, position and visible keys."""
        starts, lengths = self.node.inputs[4:6]
        before = _number(i64(0))
        with T.serial(i64(1), self.batch.sequences) as n:
            passed = tirx.LE(self.batch.read(starts, n), row)
            T.buffer_store(before, tirx.Select(passed, n, before[i64(0)]), [i64(0)])
        sequence = bind(before[i64(0)])
        left = bind(self.batch.read(starts, sequence + i64(1)) - row)
        length = self.batch.read(lengths, sequence)
        position = bind(length - left)
        high = bind(position + i64(1)) if self.node["causal"] else length
        item = Item(sequence, i64(0), row, position, i64(1), i64(0), high)
        low, high = seen_keys(self.node, item, i64(0))
        return Item(sequence, i64(0), row, position, i64(1), low, high)


def _number(value: Expr, dtype: str = "int64") -> tirx.Buffer:
    """A number that changes."""
    buffer = T.alloc_buffer((1,), dtype)
    T.buffer_store(buffer, value, [i64(0)])
    return buffer


def _needs(kernel: Kernel, node: Node) -> dict[Node, str]:
    cache = node.inputs[2]
    needed = {**pulled_once(kernel, node.inputs[0]), **pulled_once(kernel, node.inputs[1])}
    return {**needed, cache: cache.type.dtype} if cache.op.name == "cache_append" else needed


def emit_selection(kernel: Kernel, node: Node, results: Mapping[Node, Place]) -> None:
    """Emit a paged_selected_keys: some rows at a time, first their scores, then what they pick."""
    place = results[node] if node in results else kernel.scratch(node)
    cache, table, starts, lengths = node.inputs[2:]
    batch = Batch(kernel, node, starts, lengths)
    longest = kernel.dims.expr(table.shape[1]) * i64(cache.type.block)
    ranks = T.alloc_buffer((i64(ROWS), longest), "uint32")
    self = _Selection(kernel, node, batch, _as_attention(kernel, node, batch), ranks)
    rows = kernel.dims.expr(node.shape[0])
    with T.serial(i64(0), tirx.floordiv(rows + i64(ROWS - 1), i64(ROWS))) as tile:
        first = bind(tile * i64(ROWS))
        count = bind(tirx.min(rows - first, i64(ROWS)))
        stretches = _stretches(self, first, count)
        with T.parallel(i64(0), count * stretches) as at:
            row = bind(tirx.floordiv(at, stretches))
            _rank(self, bind(first + row), row, bind(tirx.floormod(at, stretches)))
        with T.parallel(i64(0), count) as row:
            _pick(self, place, bind(first + row), row)
    kernel.places[node] = place


def _as_attention(kernel: Kernel, node: Node, batch: Batch) -> Attention:
    """The queries and keys as those of an attention without values."""
    q, _, cache, table = node.inputs[:4]
    keys, block = slots_view(kernel, cache), cache.type.block
    return Attention(
        kernel=kernel, heads=int(q.shape[1]), groups=1, width=int(q.shape[2]), value_width=0,
        scale=1.0, softcap=0.0, run=block, dtype=q.dtype, alone=True,
        slot=lambda item, j: batch.page(table, block, item, j),
        key=lambda w, item, s, d: keys.read([s, item.group, d]),
        value=lambda w, item, s, e: const(0, "float32"),
        query=lambda w, item, i, h, d: w.pull().value(q, [item.query + i, h, d]),
        store=lambda item, i, h, e, x: None,
        seen=lambda item, i: (item.low, item.high),
        visible=None, bias=None, sink=None,
    )  # fmt: skip


def _stretches(self: _Selection, first: Expr, count: Expr) -> Expr:
    """How many stretches of KEYS keys the rows from `first` on have at most."""
    most = _number(i64(1))
    with T.serial(i64(0), count) as row:
        item = self.item(bind(first + row))
        own = tirx.floordiv(item.high + i64(KEYS - 1), i64(KEYS))
        T.buffer_store(most, tirx.max(most[i64(0)], own), [i64(0)])
    return bind(most[i64(0)])


# -- scores


def _rank(self: _Selection, query: Expr, row: Expr, stretch: Expr) -> None:
    """The ranks of one stretch of a query's keys."""
    a, products, work = self.attention, Floats(self.attention), self.kernel.work()
    item = self.item(query)
    start = bind(stretch * i64(KEYS))
    inside = tirx.And(tirx.LT(start, item.high), tirx.GT(start + i64(KEYS), item.low))
    with T.If(inside), T.Then():
        q, kt = products.queries(a.heads), products.keys(STREAM // LANES)
        scores = products.matrix(a.heads, STREAM)
        weights = T.alloc_buffer((a.heads,), "float32")
        with T.serial(i64(0), i64(a.heads)) as h:
            products.put_query(work, item, q, h, (i64(0), h))
            weight = work.pull().value(self.node.inputs[1], [query, h])
            T.buffer_store(weights, cast(weight, "float32"), [h])
        with T.serial(i64(0), i64(KEYS // STREAM)) as part:
            begin = bind(start + part * i64(STREAM))
            held = tirx.And(tirx.LT(begin, item.high), tirx.GT(begin + i64(STREAM), item.low))
            with T.If(held), T.Then():
                with T.serial(i64(0), i64(STREAM // LANES)) as run:
                    at = bind(begin + run * i64(LANES))
                    products.turn_keys(work, item, kt, run, at)
                _score(products, q, kt, scores)
                _sum_heads(self, scores, weights, row, begin)


def _score(products: Floats, q: tirx.Buffer, kt: tirx.Buffer, scores: tirx.Buffer) -> None:
    """The products of all heads with STREAM keys."""
    heads = products.a.heads
    size = products.tile_of(heads)
    for start, count in Rows(q, i64(0), heads).tiles(size):
        vectors = min(STREAM // LANES, products.vectors_of(count))
        mine, to = (Rows(b, i64(start), count) for b in (q, scores))
        with T.serial(i64(0), i64(STREAM // LANES // vectors)) as c:
            run = bind(c * i64(vectors))
            products.score(mine, kt, run, vectors, to, bind(run * i64(LANES)))


def _sum_heads(
    self: _Selection, scores: tirx.Buffer, weights: tirx.Buffer, row: Expr, begin: Expr
) -> None:
    """Weighed sums over the heads of STREAM keys, as ranks."""
    longest = self.ranks.shape[1]
    with T.serial(i64(0), i64(STREAM // LANES)) as run:
        total = T.alloc_buffer((LANES,), "float32")
        with vectorized(LANES) as v:
            T.buffer_store(total, const(0, "float32"), [v])
        with T.serial(i64(0), i64(self.attention.heads)) as h, vectorized(LANES) as v:
            value = scores[h, run * i64(LANES) + v] * const(float(self.node["scale"]), "float32")
            if self.node["activation"] == "relu":
                value = tirx.max(value, const(0, "float32"))
            T.buffer_store(total, total[v] + weights[h] * value, [v])
        at = bind(begin + run * i64(LANES))
        # Past the last page there is no room, and no key.
        with T.If(tirx.LE(at + i64(LANES), longest)):
            with T.Then(), vectorized(LANES) as v:
                T.buffer_store(self.ranks, _rank_of(total[v]), [row, at + v])
            with T.Else(), T.serial(i64(0), tirx.max(longest - at, i64(0))) as lane:
                T.buffer_store(self.ranks, _rank_of(total[lane]), [row, at + lane])


def _rank_of(score: Expr) -> Expr:
    """Whole numbers in the order of floats; zeros of both signs are one."""
    u = lambda n: tirx.IntImm("uint32", n)  # noqa: E731
    plain = tirx.Select(tirx.EQ(score, const(0, "float32")), const(0, "float32"), score)
    bits = tirx.op.reinterpret("uint32", plain)
    negative = tirx.NE(tirx.op.bitwise_and(bits, u(1 << 31)), u(0))
    flipped = tirx.Select(negative, u(0xFFFFFFFF), u(1 << 31))
    return tirx.op.bitwise_xor(bits, flipped)


# -- what is picked


def _pick(self: _Selection, place: Place, query: Expr, row: Expr) -> None:
    """The places of a query's picked keys, ascending, then -1."""
    item, count = self.item(query), int(self.node["count"])
    seen = bind(item.high - item.low)
    with T.If(tirx.LE(seen, i64(count))):
        with T.Then(), T.serial(i64(0), i64(count)) as j:
            value = tirx.Select(tirx.LT(j, seen), item.low + j, i64(-1))
            place.store([query, j], tirx.Cast("int32", value))
        with T.Else():
            last, equals = _last_rank(self, item, row, count)
            _write_above(self, place, item, row, last, equals)


def _last_rank(
    self: _Selection, item: Item, row: Expr, count: int
) -> tuple[tirx.Buffer, tirx.Buffer]:
    """The rank of the last of the `count` highest, and how many of that rank are among them."""
    zero, u = i64(0), lambda n: tirx.IntImm("uint32", n)
    prefix, left = _number(u(0), "uint32"), _number(i64(count))
    counts = T.alloc_buffer((256,), "int32")
    for shift in BYTES:
        with T.serial(zero, i64(256)) as b:
            T.buffer_store(counts, const(0, "int32"), [b])
        with T.serial(item.low, item.high) as j:
            rank = bind(self.ranks[row, j])
            byte = bind(tirx.Cast("int64", _byte(rank, shift)))
            # The bytes above this one are those found so far.
            above = tirx.op.bitwise_xor(rank, prefix[zero])
            same = tirx.EQ(_byte(above, shift + 8, wide=True), u(0)) if shift < 24 else None
            if same is None:
                T.buffer_store(counts, counts[byte] + const(1, "int32"), [byte])
            else:
                with T.If(same), T.Then():
                    T.buffer_store(counts, counts[byte] + const(1, "int32"), [byte])
        _descend(counts, prefix, left, shift)
    return prefix, left


def _byte(value: Expr, shift: int, *, wide: bool = False) -> Expr:
    """A byte of a rank, or all from there up."""
    moved = tirx.op.shift_right(value, tirx.IntImm("uint32", shift))
    return moved if wide else tirx.op.bitwise_and(moved, tirx.IntImm("uint32", 255))


def _descend(counts: tirx.Buffer, prefix: tirx.Buffer, left: tirx.Buffer, shift: int) -> None:
    """The highest byte down to which at least `left` keys lie: into the prefix; `left` loses those
    above it.
    """
    zero = i64(0)
    found = _number(i64(0), "int64")
    with T.serial(zero, i64(256)) as i, T.If(tirx.EQ(found[zero], zero)), T.Then():
        byte = bind(i64(255) - i)
        here = bind(tirx.Cast("int64", counts[byte]))
        with T.If(tirx.GE(here, left[zero])):
            with T.Then():
                bits = tirx.op.shift_left(tirx.Cast("uint32", byte), tirx.IntImm("uint32", shift))
                T.buffer_store(prefix, tirx.op.bitwise_or(prefix[zero], bits), [zero])
                T.buffer_store(found, i64(1), [zero])
            with T.Else():
                T.buffer_store(left, left[zero] - here, [zero])


def _write_above(
    self: _Selection,
    place: Place,
    item: Item,
    row: Expr,
    last: tirx.Buffer,
    equals: tirx.Buffer,
) -> None:
    """The places of the keys of higher rank than the last, and of the first `equals` of its own."""
    zero, written = i64(0), _number(i64(0))
    with T.serial(item.low, item.high) as j:
        rank = bind(self.ranks[row, j])
        equal = tirx.EQ(rank, last[zero])
        picked = tirx.Or(tirx.GT(rank, last[zero]), tirx.And(equal, tirx.GT(equals[zero], zero)))
        with T.If(picked), T.Then():
            place.store([item.query, written[zero]], tirx.Cast("int32", j))
            T.buffer_store(written, written[zero] + i64(1), [zero])
            with T.If(equal), T.Then():
                T.buffer_store(equals, equals[zero] - i64(1), [zero])


SELECTION = Anchor(_needs, emit_selection)
