"""The attention template: online softmax over blocks of keys, never a row of scores longer than
a block.

softmax(softcap(scale q k^T) + bias) v (Milakov and Gimelshein, 2018; Dao et al., 2022). A work
item is a run of query tokens of one sequence and one group of heads that share their keys;
items are shared out among the threads. One token alone (decode) takes dot products along the
keys as they lie in the cache; several tokens share a block of keys turned round, so that a
vector holds sixteen keys. Sums are float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...ir.node import Node
from . import mathematics as m
from .function import Kernel
from .isa import LANES
from .loops import Place, Work, along
from .reductions import across, fold_of
from .rows import kept_nodes
from .values import Expr, bind, cast, const, i64, vectorized


@dataclass(frozen=True)
class Space:
    """Tile sizes: keys of a block, rows (tokens x heads of a group) of a prefill tile, rows of a
    register tile.
    """

    keys: int = 32
    rows: int = 64
    register_rows: int = 8


SPACE = Space()
_NEVER = float("-inf")


@dataclass(frozen=True)
class Item:
    """What one work item is about: its place in the batch, its tokens, the keys it may see.

    `query` is the row of the first token, `position` its position, `count` the tokens; keys run
    from `low` to `high`.
    """

    sequence: Expr
    group: Expr
    query: Expr
    position: Expr
    count: Expr
    low: Expr
    high: Expr


@dataclass(frozen=True)
class Attention:
    """One attention op of a kernel, however its keys are stored: sizes, options, and how
    elements are read.

    `key(work, item, slot, d)` and `value(work, item, slot, e)` read an element where
    `slot(item, j)` is key j's place; `query(work, item, i, head, d)` reads a query; `bias(work,
    item, i, head, j)` is what is added to a score, None for nothing; `visible` is the mask
    beyond the causal one.
    """

    kernel: Kernel
    heads: int
    groups: int
    width: int
    value_width: int
    scale: float
    softcap: float
    slot: Callable[[Item, Expr], Expr]
    key: Callable[[Work, Item, Expr, Expr], Expr]
    value: Callable[[Work, Item, Expr, Expr], Expr]
    query: Callable[[Work, Item, Expr, Expr, Expr], Expr]
    store: Callable[[Item, Expr, Expr, Expr, Expr], None]
    visible: Callable[[Work, Item, Expr, Expr, Expr], Expr]
    bias: Callable[[Work, Item, Expr, Expr, Expr], Expr] | None
    sink: Callable[[Work, Expr], Expr] | None

    @property
    def repeat(self) -> int:
        """Query heads of a group."""
        return self.heads // self.groups

    @property
    def tokens(self) -> int:
        """Query tokens of a prefill item."""
        return max(1, SPACE.rows // self.repeat)


@dataclass(frozen=True)
class _State:
    """An item's buffers: scaled queries, scores, running maximum and sum, correction of the last
    block, weighted values.
    """

    rows: int
    q: tirx.Buffer
    scores: tirx.Buffer
    largest: tirx.Buffer
    total: tirx.Buffer
    correction: tirx.Buffer
    sums: tirx.Buffer
    slots: tirx.Buffer


def _f(value: float) -> Expr:
    return const(value, "float32")


def _state(a: Attention, rows: int) -> _State:
    keys, padded = SPACE.keys, -(-a.value_width // LANES) * LANES
    first, second, third = (T.alloc_buffer((rows,), "float32") for _ in range(3))
    return _State(
        rows,
        T.alloc_buffer((rows, -(-a.width // LANES) * LANES), "float32"),
        T.alloc_buffer((rows, keys), "float32"),
        first,
        second,
        third,
        T.alloc_buffer((rows, padded), "float32"),
        T.alloc_buffer((keys,), "int64"),
    )


def emit_item(a: Attention, work: Work, item: Item) -> None:
    """The whole of one work item: decode's way for one token, prefill's for more."""
    with T.If(tirx.EQ(item.count, i64(1))):
        with T.Then():
            _attend(a, work, item, _state(a, a.repeat), _dot_scores)
        with T.Else():
            rows = -(-a.tokens * a.repeat // SPACE.register_rows) * SPACE.register_rows
            _attend(a, work, item, _state(a, rows), _tile_scores)


Scores = Callable[[Attention, Work, Item, _State, Expr], None]


def _attend(a: Attention, work: Work, item: Item, s: _State, scores: Scores) -> None:
    rows = bind(item.count * i64(a.repeat))
    _load_queries(a, work, item, s, rows)
    keys = i64(SPACE.keys)
    first, last = tirx.floordiv(item.low, keys), tirx.floordiv(item.high + keys - i64(1), keys)
    with T.serial(first, last) as block:
        base = bind(block * keys)
        with T.serial(i64(0), keys) as v:
            j = tirx.max(tirx.min(base + v, item.high - i64(1)), i64(0))
            T.buffer_store(s.slots, a.slot(item, bind(j)), [v])
        scores(a, work, item, s, base)
        with T.serial(i64(0), rows) as r:
            _softmax_row(a, work, item, s, r, base)
        _accumulate(a, work, item, s, rows)
    _finish(a, work, item, s, rows)


def _head(a: Attention, item: Item, r: Expr) -> tuple[Expr, Expr]:
    """(token within the item, head) of a row."""
    if a.repeat == 1:
        return r, item.group
    token = bind(tirx.floordiv(r, i64(a.repeat)))
    return token, bind(item.group * i64(a.repeat) + tirx.floormod(r, i64(a.repeat)))


def _load_queries(a: Attention, work: Work, item: Item, s: _State, rows: Expr) -> None:
    """q times scale, padded with zeros; the running values at their start."""
    with T.serial(i64(0), i64(s.rows)) as r:
        inside = work.within(r, 0, s.rows)
        with T.If(tirx.LT(r, rows)):
            with T.Then():
                token, head = _head(a, item, r)

                def element(inner: Work, d: Expr) -> None:
                    value = cast(a.query(inner, item, token, head, d), "float32")
                    T.buffer_store(s.q, value * _f(a.scale), [r, d])

                along(inside, a.width, element)
                start = a.sink(inside, head) if a.sink else _f(_NEVER)
                T.buffer_store(s.largest, cast(start, "float32"), [r])
            with T.Else():
                along(inside, a.width, lambda _, d: T.buffer_store(s.q, _f(0), [r, d]))
                T.buffer_store(s.largest, _f(_NEVER), [r])
        T.buffer_store(s.total, _f(1.0 if a.sink else 0.0), [r])
        along(inside, int(s.sums.shape[1]), lambda _, e: T.buffer_store(s.sums, _f(0), [r, e]))


def _dot_scores(a: Attention, work: Work, item: Item, s: _State, base: Expr) -> None:
    """scores[r, v] = q[r] . k[v] with vectors along the width; the rows of a group share each
    key.
    """
    whole, rest = divmod(a.width, LANES)
    with T.serial(i64(0), i64(SPACE.keys)) as v:
        slot = bind(s.slots[v])
        for low in range(0, a.repeat, SPACE.register_rows):
            rows = range(low, min(low + SPACE.register_rows, a.repeat))
            sums = {r: _zero_vector() for r in rows}
            if whole:
                with T.serial(i64(0), i64(whole)) as o:
                    k = _vector_of(lambda lane, o=o: a.key(work, item, slot, o * i64(LANES) + lane))
                    for r in rows:
                        with vectorized(LANES) as lane:
                            value = sums[r][lane] + s.q[r, o * i64(LANES) + lane] * k[lane]
                            T.buffer_store(sums[r], value, [lane])
            for r in rows:
                score = across(sums[r], fold_of("reduce_sum"), "float32")
                T.buffer_store(s.scores, score, [i64(r), v])
            if rest:
                with T.serial(i64(whole * LANES), i64(a.width)) as d:
                    k = bind(cast(a.key(work, item, slot, d), "float32"))
                    for r in rows:
                        T.buffer_store(s.scores, s.scores[r, v] + s.q[r, d] * k, [i64(r), v])


def _zero_vector() -> tirx.Buffer:
    buffer = T.alloc_buffer((LANES,), "float32")
    with vectorized(LANES) as v:
        T.buffer_store(buffer, _f(0), [v])
    return buffer


def _vector_of(element: Callable[[Expr], Expr]) -> tirx.Buffer:
    """Sixteen elements, widened, in a register."""
    buffer = T.alloc_buffer((LANES,), "float32")
    with vectorized(LANES) as lane:
        T.buffer_store(buffer, cast(element(lane), "float32"), [lane])
    return buffer


def _tile_scores(a: Attention, work: Work, item: Item, s: _State, base: Expr) -> None:
    """scores = q kt with kt[d, v] turned round once for all rows; register tiles of rows by
    vectors of keys.
    """
    kt = T.alloc_buffer((a.width, SPACE.keys), "float32")
    with T.serial(i64(0), i64(SPACE.keys)) as v:
        slot = bind(s.slots[v])

        def element(inner: Work, d: Expr) -> None:
            T.buffer_store(kt, cast(a.key(inner, item, slot, d), "float32"), [d, v])

        along(work, a.width, element)
    tile, vectors = SPACE.register_rows, SPACE.keys // LANES
    blocks = tirx.floordiv(item.count * i64(a.repeat) + i64(tile - 1), i64(tile))
    with T.serial(i64(0), blocks) as b:
        sums = [[_zero_vector() for _ in range(vectors)] for _ in range(tile)]
        with T.serial(i64(0), i64(a.width)) as d:
            for c in range(vectors):
                k = bind(kt[d, T.ramp(i64(c * LANES), i64(1), LANES)])
                for r in range(tile):
                    q = T.broadcast(s.q[b * i64(tile) + i64(r), d], LANES)
                    lanes = T.ramp(0, 1, LANES)
                    T.buffer_store(sums[r][c], sums[r][c][lanes] + q * k, [lanes])
        for r in range(tile):
            for c in range(vectors):
                lanes = T.ramp(i64(c * LANES), i64(1), LANES)
                T.buffer_store(
                    s.scores, sums[r][c][T.ramp(0, 1, LANES)], [b * i64(tile) + i64(r), lanes]
                )


def _softmax_row(a: Attention, work: Work, item: Item, s: _State, r: Expr, base: Expr) -> None:
    """Cap, bias, mask; then the running maximum and sum take the block in, and scores become
    weights.
    """
    token, head = _head(a, item, r)
    inside = work
    block = _zero_vector()
    with vectorized(LANES) as v:
        T.buffer_store(block, _f(_NEVER), [v])
    for c in range(SPACE.keys // LANES):
        with vectorized(LANES) as v:
            lane = v + i64(c * LANES)
            j = base + lane
            score = _score(a, inside, item, s.scores[r, lane], token, head, j)
            T.buffer_store(s.scores, score, [r, lane])
            T.buffer_store(block, tirx.max(block[v], score), [v])
    before = bind(s.largest[r])
    largest = bind(tirx.max(before, across(block, tirx.max, "float32")))
    # A row that has seen no key yet has -inf on both sides; its weights must be 0, not NaN.
    level = bind(tirx.Select(tirx.EQ(largest, _f(_NEVER)), _f(0), largest))
    total = _zero_vector()
    for c in range(SPACE.keys // LANES):
        with vectorized(LANES) as v:
            weight = bind(m.exp(s.scores[r, v + i64(c * LANES)] - level))
            T.buffer_store(s.scores, weight, [r, v + i64(c * LANES)])
            T.buffer_store(total, total[v] + weight, [v])
    correction = bind(m.exp(before - level))
    T.buffer_store(s.correction, correction, [r])
    T.buffer_store(s.largest, largest, [r])
    T.buffer_store(
        s.total, s.total[r] * correction + across(total, fold_of("reduce_sum"), "float32"), [r]
    )


def _score(
    a: Attention, work: Work, item: Item, raw: Expr, token: Expr, head: Expr, j: Expr
) -> Expr:
    score = raw
    if a.softcap:
        score = m.tanh(score * _f(1.0 / a.softcap)) * _f(a.softcap)
    inside = tirx.LT(j, item.high)
    if a.bias:
        held = bind(tirx.max(tirx.min(j, item.high - i64(1)), i64(0)))
        score = score + a.bias(work, item, token, head, held)
    seen = tirx.And(inside, a.visible(work, item, token, head, j))
    return bind(tirx.Select(seen, score, _f(_NEVER)))


def _accumulate(a: Attention, work: Work, item: Item, s: _State, rows: Expr) -> None:
    """sums = sums * correction + weights @ v, a vector of the value's width at a time."""
    tile = min(SPACE.register_rows, s.rows)
    blocks = -(-s.rows // tile)
    whole, rest = divmod(a.value_width, LANES)
    for low in range(0, blocks * tile, tile) if s.rows <= 2 * SPACE.register_rows else (None,):
        if low is None:
            with T.serial(i64(0), tirx.floordiv(rows + i64(tile - 1), i64(tile))) as b:
                _accumulate_rows(a, work, item, s, b * i64(tile), tile, whole, rest)
        else:
            _accumulate_rows(a, work, item, s, i64(low), min(tile, s.rows - low), whole, rest)


def _accumulate_rows(
    a: Attention, work: Work, item: Item, s: _State, low: Expr, count: int, whole: int, rest: int
) -> None:
    def block(start: Expr, lanes: int) -> None:
        sums = [T.alloc_buffer((lanes,), "float32") for _ in range(count)]
        for r, buffer in enumerate(sums):
            with _lanes(lanes) as v:
                value = s.sums[low + i64(r), start + v] * s.correction[low + i64(r)]
                T.buffer_store(buffer, value, [v])
        with T.serial(i64(0), i64(SPACE.keys)) as j:
            slot = bind(s.slots[j])
            value = T.alloc_buffer((lanes,), "float32")
            with _lanes(lanes) as v:
                T.buffer_store(value, cast(a.value(work, item, slot, start + v), "float32"), [v])
            for r, buffer in enumerate(sums):
                weight = bind(s.scores[low + i64(r), j])
                with _lanes(lanes) as v:
                    T.buffer_store(buffer, buffer[v] + weight * value[v], [v])
        for r, buffer in enumerate(sums):
            with _lanes(lanes) as v:
                T.buffer_store(s.sums, buffer[v], [low + i64(r), start + v])

    if whole:
        with T.serial(i64(0), i64(whole)) as o:
            block(o * i64(LANES), LANES)
    if rest:
        with T.serial(i64(whole * LANES), i64(a.value_width)) as e:
            block(e, 1)


def _lanes(count: int) -> object:
    return vectorized(count)


def _finish(a: Attention, work: Work, item: Item, s: _State, rows: Expr) -> None:
    """The weighted values over the sum of weights; zero where a token sees no key."""
    with T.serial(i64(0), rows) as r:
        token, head = _head(a, item, r)
        total = s.total[r]
        inverse = bind(tirx.Select(tirx.GT(total, _f(0)), _f(1) / total, _f(0)))

        def element(_: Work, e: Expr) -> None:
            a.store(item, token, head, e, s.sums[r, e] * inverse)

        along(work, a.value_width, element)


def result_place(
    kernel: Kernel, node: Node, results: Mapping[Node, Place]
) -> tuple[Place, dict[Node, Place]]:
    """Where an anchor's value goes, and which nodes are done with it: the node's own result, a
    view of a result that is a reshape of it, or scratch for what follows.
    """
    if node in results:
        return results[node], {node: results[node]}
    if len(results) == 1:
        ((result, place),) = results.items()
        inner = result
        while inner.op.name == "reshape":
            inner = inner.inputs[0]
        if inner is node:
            return kernel.view(place, node.shape), {result: place}
    place = kernel.scratch(node)
    return place, {node: place}


def pulled_once(kernel: Kernel, x: Node) -> dict[Node, str]:
    """x as a whole buffer only where its value by index would compute something twice."""
    kept = kept_nodes({x: kernel.places[kernel.body.inputs[0]]}, kernel.work().sources)
    return {x: "f32"} if kept else {}
