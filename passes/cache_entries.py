"""How cut values lie in a cache's entries: one row for each group of heads that read the same keys
and values.

Rows are compared by their elements (trace_elements), so a head repeated by a broadcast, an index or
a join counts once, whatever ops did it. The values in k's row may serve v too (latent attention).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..ir.dims import equal, equal_shapes
from ..ir.node import Node
from ..ir.ops import tensor
from ..ir.types import BITS
from .absorb_linears import by_heads, moved_bias, moved_weight, narrowed, on_heads
from .cut_region import cheapest_cut, region_behind
from .trace_elements import Ids, LinearMap, Trace, row_size


@dataclass(frozen=True)
class Entries:
    """What an attention caches and how it reads it.

    `key` and `value` are the nodes [T, G, ...] to append (the same node for one cache); `query` is
    compared with the key entries; `result` makes the attention's result from the paged one's.
    `cost` is multiplications a cached token.
    """

    key: Node
    value: Node
    query: Node
    value_start: int
    value_size: int
    result: Callable[[Node], Node]
    cost: int

    @property
    def token_bytes(self) -> int:
        """Bytes of cache that a token takes."""
        nodes = {self.key, self.value}
        return sum(int(n.shape[1]) * int(n.shape[2]) * BITS[n.dtype] // 8 for n in nodes)


def best_entries(attention: Node, tokens: str) -> Entries:
    """The entries for a ragged attention: with linear maps absorbed where bytes shrink by more than
    arithmetic grows.
    """
    plain = _Reading(attention, tokens, with_linears=False).entries()
    assert plain is not None, attention
    absorbed = _Reading(attention, tokens, with_linears=True).entries()
    if absorbed is None or absorbed.token_bytes * absorbed.cost >= plain.token_bytes * plain.cost:
        return plain
    return absorbed


@dataclass(frozen=True)
class Part:
    """A run [start, stop) of the last axis of a key or value: elements as they are, or results of
    one linear map.

    `rows` is [G', size]: what is cached for each head, elements of the run or of the map's input.
    `fits` is false where heads take the run from several vectors, so that no one row stands for it.
    """

    start: int
    stop: int
    rows: Ids
    source: LinearMap | None = None
    fits: bool = True


@dataclass(frozen=True)
class Grouping:
    """Which of `groups` heads of keys are the same: each run of groups / distinct of them, or
    (tiled) every distinct-th.
    """

    groups: int
    distinct: int
    tiled: bool

    @property
    def repeats(self) -> int:
        """How many heads share one row."""
        return self.groups // self.distinct

    def rows(self, ids: Ids) -> Ids:
        """One row for each group."""
        return ids[: self.distinct] if self.tiled else ids[:: self.repeats]

    def heads(self, value: Node) -> Node:
        """value[T, G', D] without its repetitions."""
        if self.repeats == 1:
            return value
        step = 1 if self.tiled else self.repeats
        stop = self.distinct if self.tiled else self.groups
        return tensor.slice_(value, axis=1, start=0, stop=stop, step=step)

    def query(self, q: Node) -> Node:
        """Query heads [T, H, D] in an order in which the heads of a group stand together."""
        return self._swapped(q, self.repeats, self.distinct)

    def back(self, out: Node) -> Node:
        """Heads [T, H, E] in their own order again."""
        return self._swapped(out, self.distinct, self.repeats)

    def _swapped(self, x: Node, outer: int, inner: int) -> Node:
        if not self.tiled:
            return x
        tokens, heads, size = x.shape
        split = tensor.reshape(x, shape=(tokens, outer, inner, int(heads) // self.groups, size))
        return tensor.reshape(tensor.transpose(split, permutation=(0, 2, 1, 3, 4)), shape=x.shape)


def grouping_of(rows: Ids) -> Grouping:
    """The grouping with the fewest rows under which equal heads [G', D] fall together."""
    groups = len(rows)
    for distinct in range(1, groups):
        repeats = groups // distinct
        if groups % distinct == 0:
            if (rows == np.repeat(rows[::repeats], repeats, axis=0)).all():
                return Grouping(groups, distinct, tiled=False)
            if (rows == np.tile(rows[:distinct], (repeats, 1))).all():
                return Grouping(groups, distinct, tiled=True)
    return Grouping(groups, groups, tiled=False)


class _Reading:
    """One attention's keys and values traced to a cut."""

    def __init__(self, attention: Node, tokens: str, *, with_linears: bool) -> None:
        self.q, self.k, self.v = attention.inputs[:3]
        self.has_sinks = "sinks" in attention["extras"]
        self.softcap = attention["softcap"]
        region = region_behind((self.k, self.v), tokens, with_linears=with_linears)
        cut = cheapest_cut((self.k, self.v), region, tokens)
        self.trace = Trace(tokens, cut, {n: m for n, m in region.linears.items() if n not in cut})

    def entries(self) -> Entries | None:
        """The entries for this cut; None where attention cannot be written over it."""
        k, v = self._parts(self.k), self._parts(self.v)
        if k is None or v is None or not self._absorbs(k, v):
            return None
        # inputs of linear maps first: latent attention reads its values from the front of an entry
        k = tuple(sorted(k, key=lambda p: p.source is None))
        grouping = grouping_of(np.concatenate([p.rows for p in (*k, *v)], axis=1))
        if not all(self._is_held(grouping.rows(p.rows)) for p in (*k, *v) if p.source):
            return None
        key = self._joined(self.k, k, grouping)
        start = _place_in(
            grouping.rows(np.concatenate([p.rows for p in k], 1)), grouping.rows(v[0].rows)
        )
        value = self._joined(self.v, v, grouping) if start is None else key
        size, heads = v[0].rows.shape[1], int(self.q.shape[1])
        return Entries(
            key, value, grouping.query(self._query(k)), start or 0, size,
            lambda out: self._result(v[0], grouping.back(out)), heads * (int(key.shape[2]) + size),
        )  # fmt: skip

    def _parts(self, value: Node) -> tuple[Part, ...] | None:
        """The runs of the last axis in order; None where heads differ in what makes a run."""
        ids = self.trace.of(value)
        if ids is None:
            return None
        kind = np.full(ids.shape, -1)
        linears = list(self.trace.made)
        for i, node in enumerate(linears):
            base = self.trace.bases[node]
            kind[(ids >= base) & (ids < base + row_size(node))] = i
        if (kind != kind[:1]).any():
            return None
        cuts = [int(c) + 1 for c in np.flatnonzero(np.diff(kind[0]))]
        runs = itertools.pairwise([0, *cuts, ids.shape[1]])
        whose = [*linears, None]  # the last, at -1, for elements of no linear map
        return tuple(self._part(ids[:, a:b], a, b, whose[int(kind[0, a])]) for a, b in runs)

    def _part(self, ids: Ids, start: int, stop: int, node: Node | None) -> Part:
        if node is None:
            return Part(start, stop, ids)
        source = self.trace.linears[node]
        inputs = self.trace.of(source.x)
        if inputs is None:
            return Part(start, stop, ids, source, fits=False)
        vector = (ids - self.trace.bases[node]) // int(node.shape[-1])
        rows = inputs.reshape(-1, inputs.shape[-1])[vector[:, 0]]
        return Part(start, stop, rows, source, fits=bool((vector == vector[:, :1]).all()))

    def _absorbs(self, k: tuple[Part, ...], v: tuple[Part, ...]) -> bool:
        """Whether attention can take the maps: one for the whole of v; biases where they drop out
        of the softmax.
        """
        if len(v) != 1 or not all(p.fits for p in (*k, *v)):
            return False
        if any(p.source and p.source.bias for p in k) and (self.softcap or self.has_sinks):
            # q b is the same for all keys, but changes a capped score, or its place beside a sink
            return False
        return not (
            v[0].source and v[0].source.bias and self.has_sinks
        )  # the weights then sum to less than 1

    def _joined(self, value: Node, parts: tuple[Part, ...], grouping: Grouping) -> Node:
        """The parts side by side, [T, G, D]."""
        nodes = [self._part_node(value, p, grouping) for p in parts]
        return nodes[0] if len(nodes) == 1 else tensor.concat(*nodes, axis=2)

    def _part_node(self, value: Node, part: Part, grouping: Grouping) -> Node:
        rows = grouping.rows(part.rows)
        found = self._holding(rows)
        if found is not None:
            return found
        if part.source is None:
            return grouping.heads(narrowed(value, part.start, part.stop))
        # the same vector for heads that the other parts tell apart
        one = self._holding(rows[:1])
        assert one is not None, f"no node holds the input of {part.source}"
        return tensor.broadcast(one, shape=(one.shape[0], *rows.shape))

    def _is_held(self, rows: Ids) -> bool:
        """Whether a value holds these rows, or their one row where they are the same."""
        return self._holding(rows) is not None or (
            bool((rows == rows[:1]).all()) and self._holding(rows[:1]) is not None
        )

    def _holding(self, rows: Ids) -> Node | None:
        """The traced value with these elements for each token, as [T, G, D]."""
        for node in tuple(self.trace.ids):
            ids = self.trace.of(node)
            if ids is not None and ids.size == rows.size and (ids.ravel() == rows.ravel()).all():
                return _as_heads(node, rows.shape)
        return None

    def _query(self, k: tuple[Part, ...]) -> Node:
        """The query against the key entries: W^T q in place of a part that is W c."""
        nodes = [self._query_part(p) for p in k]
        return nodes[0] if len(nodes) == 1 else tensor.concat(*nodes, axis=2)

    def _query_part(self, part: Part) -> Node:
        q = narrowed(self.q, part.start, part.stop)
        if part.source is None:
            return q
        weight = moved_weight(narrowed(self.k, part.start, part.stop), part.source, self.trace)
        return by_heads(q, tensor.transpose(weight, permutation=(1, 2, 0)))

    def _result(self, v: Part, out: Node) -> Node:
        """The attention's result: W on the paged one's where v is W c."""
        if v.source is None:
            return out
        weight = moved_weight(self.v, v.source, self.trace)
        mapped = by_heads(out, tensor.transpose(weight, permutation=(1, 0, 2)))
        bias = moved_bias(self.v, v.source, self.trace)
        return mapped if bias is None else tensor.add(mapped, on_heads(bias, int(self.q.shape[1])))


def _place_in(key: Ids, value: Ids) -> int | None:
    """Where the rows of v stand inside the rows of k, if they do."""
    size = value.shape[1]
    for start in range(key.shape[1] - size + 1):
        if (key[:, start : start + size] == value).all():
            return start
    return None


def _as_heads(node: Node, shape: tuple[int, ...]) -> Node:
    """The node as [T, G, D], from the value that it is a reshape of, so that layers that share a
    value agree on it.
    """
    while node.op is tensor.reshape and equal(node.inputs[0].shape[0], node.shape[0]):
        node = node.inputs[0]
    wanted = (node.shape[0], *shape)
    return node if equal_shapes(node.shape, wanted) else tensor.reshape(node, shape=wanted)
