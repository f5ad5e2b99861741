"""Attention whose keys lie in paged caches, or in the rows of the step itself: ragged batches of
sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...ir.node import Node
from .attention import Attention, Item, emit_item, pulled_once, result_place
from .function import Anchor, Kernel, cache_of
from .loops import Place, Work
from .values import Expr, bind, cast, const, i64


@dataclass(frozen=True)
class _Batch:
    """The ragged batch of a step: who has which rows, and how many keys each sequence has."""

    kernel: Kernel
    node: Node
    starts: Node
    lengths: Node | None

    def read(self, node: Node, *at: Expr) -> Expr:
        """An element of an index input, 64 bits wide."""
        return bind(i64(self.kernel.work().pull().value(node, at)))

    @property
    def sequences(self) -> Expr:
        return self.kernel.dims.expr(self.starts.shape[0]) - i64(1)


def _extra(node: Node, first: int, word: str) -> Node | None:
    extras = node["extras"]
    return node.inputs[first + extras.index(word)] if word in extras else None


def _needs_paged(kernel: Kernel, node: Node) -> dict[Node, str]:
    needed = pulled_once(kernel, node.inputs[0])
    for cache in node.inputs[1:3]:
        if cache.op.name == "cache_append":
            needed[cache] = cache.type.dtype
    return needed


def emit_paged(kernel: Kernel, node: Node, results: Mapping[Node, Place]) -> None:
    """Emit a paged_attention."""
    _, k_cache, v_cache, table, starts, lengths = node.inputs[:6]
    batch = _Batch(kernel, node, starts, lengths)
    caches = [_slots_view(kernel, c) for c in (k_cache, v_cache)]
    block = k_cache.type.block

    def slot(item: Item, j: Expr) -> Expr:
        page = batch.read(table, item.sequence, tirx.floordiv(j, i64(block)))
        return page * i64(block) + tirx.floormod(j, i64(block))

    start = i64(node["value_start"])
    _emit(
        batch,
        results,
        groups=k_cache.type.entry[0],
        value_width=node["value_size"],
        slot=slot,
        key=lambda w, item, s, d: caches[0].read([s, item.group, d]),
        value=lambda w, item, s, e: caches[1].read([s, item.group, e + start]),
        first_extra=6,
    )


def _slots_view(kernel: Kernel, cache: Node) -> Place:
    place = kernel.places[cache_of(cache)]
    blocks = place.buffer.shape[0] * i64(cache.type.block)
    return kernel.view_of(place, [blocks, *(i64(d) for d in cache.type.entry)])


def emit_ragged(kernel: Kernel, node: Node, results: Mapping[Node, Place]) -> None:
    """Emit a ragged_attention: a sequence's keys are its own rows."""
    _, k, v, starts = node.inputs[:4]
    batch = _Batch(kernel, node, starts, None)
    _emit(
        batch,
        results,
        groups=int(k.shape[1]),
        value_width=int(v.shape[2]),
        slot=lambda item, j: batch.read(starts, item.sequence) + j,
        key=lambda w, item, s, d: w.pull().value(k, [s, item.group, d]),
        value=lambda w, item, s, e: w.pull().value(v, [s, item.group, e]),
        first_extra=4,
    )


def _needs_ragged(kernel: Kernel, node: Node) -> dict[Node, str]:
    needed: dict[Node, str] = {}
    for x in node.inputs[:3]:
        needed.update(pulled_once(kernel, x))
    return needed


def _emit(
    batch: _Batch,
    results: Mapping[Node, Place],
    *,
    groups: int,
    value_width: int,
    slot: Callable[[Item, Expr], Expr],
    key: Callable[[Work, Item, Expr, Expr], Expr],
    value: Callable[[Work, Item, Expr, Expr], Expr],
    first_extra: int,
) -> None:
    kernel, node = batch.kernel, batch.node
    q = node.inputs[0]
    place, done = result_place(kernel, node, results)
    sinks = _extra(node, first_extra, "sinks")
    attention = Attention(
        kernel=kernel,
        heads=int(q.shape[1]),
        groups=groups,
        width=int(q.shape[2]),
        value_width=value_width,
        scale=float(node["scale"]),
        softcap=float(node["softcap"]),
        slot=slot,
        key=key,
        value=value,
        query=lambda w, item, i, h, d: w.pull().value(q, [item.query + i, h, d]),
        store=lambda item, i, h, e, x: place.store([item.query + i, h, e], x),
        visible=lambda w, item, i, h, j: _visible(node, item.position + i, j),
        bias=_bias(node, first_extra),
        sink=None if sinks is None else lambda w, h: w.pull().value(sinks, [h]),
    )
    tiles = tirx.floordiv(kernel.dims.expr(q.shape[0]), i64(attention.tokens)) + batch.sequences
    count = bind(tiles)

    def item(work: Work, at: Expr) -> None:
        _one(batch, attention, work, tirx.floordiv(at, count), tirx.floormod(at, count))

    with T.parallel(i64(0), count * i64(groups)) as w:
        item(kernel.work(), w)
    kernel.places.update(done)


def _visible(node: Node, position: Expr, j: Expr) -> Expr:
    seen: Expr = const(1, "bool")
    if node["causal"]:
        seen = tirx.LE(j, position)
    if node["window"]:
        seen = tirx.And(seen, tirx.LT(position - j, i64(node["window"])))
    if node["chunk"]:
        chunk = i64(node["chunk"])
        seen = tirx.And(seen, tirx.EQ(tirx.floordiv(j, chunk), tirx.floordiv(position, chunk)))
    return seen


def _bias(node: Node, first: int) -> Callable[[Work, Item, Expr, Expr, Expr], Expr] | None:
    slopes, table = _extra(node, first, "slopes"), _extra(node, first, "bias")
    if slopes is None and table is None:
        return None

    def read(work: Work, item: Item, i: Expr, h: Expr, j: Expr) -> Expr:
        total: Expr = const(0, "float32")
        distance = item.position + i - j
        if slopes is not None:
            slope = cast(work.pull().value(slopes, [h]), "float32")
            total = total - slope * cast(distance, "float32")
        if table is not None:
            last = work.dims.expr(table.shape[1]) - i64(1)
            held = tirx.min(tirx.max(distance, i64(0)), last)
            total = total + cast(work.pull().value(table, [h, held]), "float32")
        return total

    return read


def _one(batch: _Batch, a: Attention, work: Work, group: Expr, tile: Expr) -> None:
    """Find the tile's sequence and tokens, then attend; tiles past the end of the batch do
    nothing.
    """
    left, found = T.alloc_buffer((1,), "int64"), T.alloc_buffer((1,), "int64")
    T.buffer_store(left, tile, [0])
    T.buffer_store(found, i64(-1), [0])
    with T.serial(i64(0), batch.sequences) as n, T.If(tirx.LT(found[0], i64(0))), T.Then():
        tokens = batch.read(batch.starts, n + i64(1)) - batch.read(batch.starts, n)
        tiles = bind(tirx.floordiv(tokens + i64(a.tokens - 1), i64(a.tokens)))
        with T.If(tirx.LT(left[0], tiles)):
            with T.Then():
                T.buffer_store(found, n, [0])
            with T.Else():
                T.buffer_store(left, left[0] - tiles, [0])
    with T.If(tirx.GE(found[0], i64(0))), T.Then():
        emit_item(a, work, _item(batch, a, group, bind(found[0]), bind(left[0])))


def _item(batch: _Batch, a: Attention, group: Expr, n: Expr, tile: Expr) -> Item:
    node = batch.node
    start, end = batch.read(batch.starts, n), batch.read(batch.starts, n + i64(1))
    length = batch.read(batch.lengths, n) if batch.lengths is not None else bind(end - start)
    query = bind(start + tile * i64(a.tokens))
    count = bind(tirx.min(end - query, i64(a.tokens)))
    position = bind(length - (end - query))
    high = bind(position + count) if node["causal"] else length
    low: Expr = i64(0)
    if node["window"]:
        low = bind(tirx.max(position - i64(node["window"] - 1), i64(0)))
    if node["chunk"] and node["causal"]:
        chunk = i64(node["chunk"])
        low = bind(tirx.max(low, tirx.floordiv(position, chunk) * chunk))
    return Item(n, group, query, position, count, low, high)


PAGED = Anchor(_needs_paged, emit_paged)
RAGGED = Anchor(_needs_ragged, emit_ragged)
