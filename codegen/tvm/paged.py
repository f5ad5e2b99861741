"""Attention whose keys lie in paged caches, or in the rows of the step itself: ragged batches of
sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...ir.node import Node
from .ahead import Notes
from .attention import Attention, Item, Memory, attention_spaces, pulled_once, result_place, splits
from .decode import Partials, Turn, emit_fold, emit_split
from .function import Anchor, Kernel, cache_of
from .loops import Place, Work
from .pairs import products_of_one
from .prefill import emit_tokens
from .pull import CodegenError
from .schedule import Schedule, Share
from .values import Expr, bind, cast, const, i64


@dataclass(frozen=True)
class Batch:
    """The ragged batch of a step: who has which rows, and how many keys each sequence has."""

    kernel: Kernel
    node: Node
    starts: Node
    lengths: Node | None

    def read(self, node: Node, *at: Expr) -> Expr:
        """An element of an index input, 64 bits wide."""
        return bind(i64(self.kernel.work().pull().value(node, at)))

    def page(self, table: Node, block: int, item: Item, position: Expr) -> Expr:
        """The slot of a position of an item's sequence, by its pages of `block` slots."""
        page = self.read(table, item.sequence, tirx.floordiv(position, i64(block)))
        return page * i64(block) + tirx.floormod(position, i64(block))

    @property
    def sequences(self) -> Expr:
        """How many sequences there are."""
        return self.kernel.dims.expr(self.starts.shape[0]) - i64(1)


def _extra(node: Node, first: int, word: str) -> Node | None:
    extras = node["extras"]
    return node.inputs[first + extras.index(word)] if word in extras else None


def _needs_paged(kernel: Kernel, node: Node) -> dict[Node, str]:
    needed = pulled_once(kernel, node.inputs[0])
    scales = (_extra(node, 6, word) for word in ("k_scale", "v_scale"))
    for cache in (*node.inputs[1:3], *(s for s in scales if s is not None)):
        if cache.op.name == "cache_append":
            needed[cache] = cache.type.dtype
    return needed


def emit_paged(kernel: Kernel, node: Node, results: Mapping[Node, Place]) -> None:
    """Emit a paged_attention."""
    _, k_cache, v_cache, table, starts, lengths = node.inputs[:6]
    batch = Batch(kernel, node, starts, lengths)
    caches = [slots_view(kernel, c) for c in (k_cache, v_cache)]
    scales = [_extra(node, 6, word) for word in ("k_scale", "v_scale")]
    factors = [None if s is None else slots_view(kernel, s) for s in scales]

    def read(which: int, item: Item, s: Expr, e: Expr) -> Expr:
        value, factor = caches[which].read([s, item.group, e]), factors[which]
        if factor is None:
            return value
        return cast(value, "float32") * factor.read([s, item.group])

    block = k_cache.type.block
    selected = _extra(node, 6, "selected")
    start = i64(node["value_start"])
    _emit(
        batch,
        results,
        groups=k_cache.type.entry[0],
        value_width=node["value_size"],
        slot=lambda item, j: batch.page(table, block, item, _position(batch, selected, item, j)),
        run=block if selected is None else 1,
        memory=(
            Memory(caches[0].buffer, caches[0].dtype),
            Memory(caches[1].buffer, caches[1].dtype, node["value_start"]),
        ),
        factors=(factors[0].buffer, factors[1].buffer) if factors[0] and factors[1] else None,
        longest=kernel.dims.expr(table.shape[1]) * i64(block),
        key=lambda w, item, s, d: read(0, item, s, d),
        value=lambda w, item, s, e: read(1, item, s, e + start),
        first_extra=6,
    )


def _position(batch: Batch, selected: Node | None, item: Item, j: Expr) -> Expr:
    """The position of an item's key j: itself, or that of the j-th that was selected."""
    return j if selected is None else batch.read(selected, item.query, j)


def slots_view(kernel: Kernel, cache: Node) -> Place:
    """A cache as [slots, *entry]."""
    place = kernel.places[cache_of(cache)]
    blocks = place.buffer.shape[0] * i64(cache.type.block)
    return kernel.view_of(place, [blocks, *(i64(d) for d in cache.type.entry)])


def emit_ragged(kernel: Kernel, node: Node, results: Mapping[Node, Place]) -> None:
    """Emit a ragged_attention: a sequence's keys are its own rows."""
    _, k, v, starts = node.inputs[:4]
    if "selected" in node["extras"]:
        raise CodegenError("ragged_attention: keys are selected in paged caches alone")
    batch = Batch(kernel, node, starts, None)
    _emit(
        batch,
        results,
        groups=int(k.shape[1]),
        value_width=int(v.shape[2]),
        slot=lambda item, j: batch.read(starts, item.sequence) + j,
        run=0,
        longest=i64(1),
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
    batch: Batch,
    results: Mapping[Node, Place],
    *,
    groups: int,
    value_width: int,
    slot: Callable[[Item, Expr], Expr],
    run: int,
    longest: Expr,
    key: Callable[[Work, Item, Expr, Expr], Expr],
    value: Callable[[Work, Item, Expr, Expr], Expr],
    first_extra: int,
    memory: tuple[Memory, Memory] | None = None,
    factors: tuple[tirx.Buffer, tirx.Buffer] | None = None,
) -> None:
    kernel, node = batch.kernel, batch.node
    q = node.inputs[0]
    place, done = result_place(kernel, node, results)
    sinks = _extra(node, first_extra, "sinks")
    alone = _extra(node, first_extra, "selected") is not None
    attention = Attention(
        kernel=kernel,
        heads=int(q.shape[1]),
        groups=groups,
        width=int(q.shape[2]),
        value_width=value_width,
        scale=float(node["scale"]),
        softcap=float(node["softcap"]),
        slot=slot,
        run=run,
        key=key,
        value=value,
        query=lambda w, item, i, h, d: w.pull().value(q, [item.query + i, h, d]),
        store=lambda item, i, h, e, x: place.store([item.query + i, h, e], x),
        seen=lambda item, i: (item.low, item.high) if alone else seen_keys(node, item, i),
        visible=None,
        bias=_bias(batch, first_extra),
        dtype=q.dtype,
        memory=memory,
        factors=factors,
        alone=alone,
        sink=None if sinks is None else lambda w, h: w.pull().value(sinks, [h]),
    )
    _over_items(batch, attention, longest)
    kernel.places.update(done)


def _over_items(batch: Batch, a: Attention, longest: Expr) -> None:
    """Sequences with one new token by their splits, others by tiles of tokens and groups; no
    sequence with one new token has more than `longest` keys.
    """
    kernel, work = batch.kernel, batch.kernel.work()
    schedule = Schedule.of(kernel, batch.sequences, a.groups, lambda n: _share(batch, a, n))
    # By the shapes alone: TVM moves allocations in front of what is computed.
    keys = a.space.keys
    count = batch.sequences * tirx.floordiv(longest + i64(keys - 1), i64(keys))
    partials = Partials.scratch(products_of_one(a), count)

    def one(n: Expr, number: Expr, notes: Notes) -> None:
        at = bind(number - schedule.items[n])
        with T.If(tirx.EQ(_tokens(batch, n), i64(1))):
            with T.Then():
                _split(batch, a, work, schedule, partials, n, number, notes)
            with T.Else():
                tiles = tirx.floordiv(_tokens(batch, n) + i64(a.tokens - 1), i64(a.tokens))
                # The last tokens see the most keys: their tiles go first.
                tile = bind(tiles - i64(1) - tirx.floordiv(at, i64(a.groups)))
                group = bind(tirx.floormod(at, i64(a.groups)))
                emit_tokens(a, work, _item(batch, a, group, n, tile))

    schedule.run(kernel, one)


def _tokens(batch: Batch, n: Expr) -> Expr:
    return bind(batch.read(batch.starts, n + i64(1)) - batch.read(batch.starts, n))


def _share(batch: Batch, a: Attention, n: Expr) -> Share:
    tokens = _tokens(batch, n)
    single = tirx.EQ(tokens, i64(1))
    tiles = tirx.floordiv(tokens + i64(a.tokens - 1), i64(a.tokens)) * i64(a.groups)
    first, last = splits(_item(batch, a, i64(0), n, i64(0)), a.space.keys)
    return Share(
        bind(tirx.Select(single, i64(0), tiles)), bind(tirx.Select(single, last - first, i64(0)))
    )


@dataclass(frozen=True)
class Part:
    """What an item of decode is about: a split of a sequence's keys, and a range of groups."""

    item: Item
    split: Expr
    number: Expr
    count: Expr
    groups: tuple[Expr, Expr]

    @staticmethod
    def of(batch: Batch, a: Attention, schedule: Schedule, n: Expr, number: Expr) -> Part:
        """By the number of the item."""
        item = _item(batch, a, i64(0), n, i64(0))
        first, last = (bind(s) for s in splits(item, a.space.keys))
        at = bind(number - schedule.items[n])
        split, part = (
            bind(tirx.truncdiv(at, schedule.parts)),
            bind(tirx.truncmod(at, schedule.parts)),
        )
        low = bind(tirx.truncdiv(part * i64(a.groups), schedule.parts))
        high = bind(tirx.truncdiv((part + i64(1)) * i64(a.groups), schedule.parts))
        stored = bind(schedule.splits[n] + split)
        return Part(item, bind(first + split), stored, bind(last - first), (low, high))


def _split(
    batch: Batch,
    a: Attention,
    work: Work,
    schedule: Schedule,
    partials: Partials,
    n: Expr,
    number: Expr,
    notes: Notes,
) -> None:
    """One part of one split of a sequence; the last to be done folds them all."""
    part = Part.of(batch, a, schedule, n, number)

    def find(to: Notes) -> None:
        upcoming = schedule.upcoming(to)
        other = schedule.sequence_of(upcoming, to, "other")
        then = Part.of(batch, a, schedule, other, tirx.max(upcoming, schedule.items[other]))
        single = tirx.EQ(_tokens(batch, other), i64(1))
        known = bind(tirx.Select(single, upcoming, i64(-1)))
        low = bind(tirx.max(then.split * i64(a.space.keys), then.item.low))
        to.expect(known, replace(then.item, group=then.groups[0]), low)

    turn = Turn(number, notes, find)
    emit_split(a, work, part.item, part.split, part.groups, partials, part.number, turn)
    with T.If(schedule.is_last(n)), T.Then():
        emit_fold(a, work, part.item, partials, bind(schedule.splits[n]), part.count)


def seen_keys(node: Node, item: Item, i: Expr) -> tuple[Expr, Expr]:
    """The range of keys that token i of an item sees."""
    position = bind(item.position + i)
    low: Expr = i64(0)
    high: Expr = bind(position + i64(1)) if node["causal"] else item.high
    if node["window"]:
        low = bind(tirx.max(position - i64(node["window"] - 1), i64(0)))
        if not node["causal"]:
            high = bind(tirx.min(position + i64(node["window"]), high))
    if node["chunk"]:
        chunk = i64(node["chunk"])
        begin = bind(tirx.floordiv(position, chunk) * chunk)
        low = bind(tirx.max(low, begin))
        high = bind(tirx.min(high, begin + chunk))
    return low, high


def _bias(batch: Batch, first: int) -> Callable[[Work, Item, Expr, Expr, Expr], Expr] | None:
    node = batch.node
    selected = _extra(node, first, "selected")
    slopes, table = _extra(node, first, "slopes"), _extra(node, first, "bias")
    both = _extra(node, first, "distances")
    if slopes is None and table is None and both is None:
        return None

    def read(work: Work, item: Item, i: Expr, h: Expr, j: Expr) -> Expr:
        total: Expr = const(0, "float32")
        distance = item.position + i - _position(batch, selected, item, j)
        if slopes is not None:
            slope = cast(work.pull().value(slopes, [h]), "float32")
            total = total - slope * cast(distance, "float32")
        if table is not None:
            last = work.dims.expr(table.shape[1]) - i64(1)
            held = tirx.min(tirx.max(distance, i64(0)), last)
            total = total + cast(work.pull().value(table, [h, held]), "float32")
        if both is not None:
            most = tirx.floordiv(work.dims.expr(both.shape[1]), i64(2))
            held = tirx.min(tirx.max(distance, -most), most) + most
            total = total + cast(work.pull().value(both, [h, held]), "float32")
        return total

    return read


def _item(batch: Batch, a: Attention, group: Expr, n: Expr, tile: Expr) -> Item:
    node = batch.node
    start, end = batch.read(batch.starts, n), batch.read(batch.starts, n + i64(1))
    length = batch.read(batch.lengths, n) if batch.lengths is not None else bind(end - start)
    query = bind(start + tile * i64(a.tokens))
    count = bind(tirx.min(end - query, i64(a.tokens)))
    position = bind(length - (end - query))
    high = bind(position + count) if node["causal"] else length
    if node["window"] and not node["causal"]:
        high = bind(tirx.min(position + count + i64(node["window"] - 1), length))
    low: Expr = i64(0)
    if node["window"] or node["chunk"]:
        whole = Item(n, group, query, position, count, low, high)
        low, _ = seen_keys(node, whole, i64(0))
    whole = Item(n, group, query, position, count, low, high)
    return _of_selected(node, whole) if a.alone else whole


def _of_selected(node: Node, item: Item) -> Item:
    """An item of one token whose keys are those that were selected, by their number."""
    places = node.inputs[len(node.inputs) - len(node["extras"]) + node["extras"].index("selected")]
    low, high = seen_keys(node, item, i64(0))
    most = bind(tirx.min(high - low, i64(int(places.shape[-1]))))
    return replace(item, low=i64(0), high=bind(tirx.max(most, i64(0))))


PAGED = Anchor(_needs_paged, emit_paged, attention_spaces)
RAGGED = Anchor(_needs_ragged, emit_ragged, attention_spaces)
