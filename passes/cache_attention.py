"""KV cache: what each attention caches is the cheapest cut, in bytes a token, behind its keys and
values.

Cut and entry are found apart from each other: `cut_region` says which values to cache,
`cache_entries` how they lie in an entry and how attention reads them. Linear maps are absorbed
where that pays: where it divides the bytes of a token by more than it multiplies the arithmetic
that each cached token costs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..ir.dims import Dim, dim
from ..ir.errors import IRError
from ..ir.graph import Graph
from ..ir.node import Node, input_
from ..ir.ops import serving
from ..ir.types import CacheType, TensorType
from ..ir.verify import quote
from .cache_entries import best_entries

_OURS = frozenset({"causal", "window", "chunk", "softcap", "scale", "extras"})


@dataclass(frozen=True)
class CacheAttention:
    """Turn every ragged_attention into a paged_attention over caches, and append to these first.

    The graph gains inputs (context_length i32[N], block_table i32[N, M], slots i32[T], the caches)
    and gives the caches back as further outputs. `block` is slots a block; `max_context` bounds the
    tokens of a sequence.
    """

    name: ClassVar[str] = "cache-attention"
    block: int = 16
    max_context: int = 4096

    def run(self, graph: Graph) -> Graph:
        """The graph in paged form; attentions whose keys and values are the same values share their
        caches.
        """
        attentions = [n for n in graph.nodes() if n.op is serving.ragged_attention]
        if not attentions:
            return graph
        paging = _Paging(graph, attentions[0], self.block)
        mapping = {a: paging.paged(a) for a in attentions}
        caches = list(paging.caches.values())
        names = (*graph.output_names, *(c.given["name"] for c in caches))
        grown = graph.with_outputs((*graph.outputs, *(c.appended for c in caches)), names)
        tables = tuple(t for t in paging.tables if t not in graph.inputs)
        return replace(
            grown.replace(mapping),
            inputs=(*graph.inputs, *tables, *(c.given for c in caches)),
            bounds={"M": (1, -(-self.max_context // self.block)), **graph.bounds},
        )


@dataclass(frozen=True)
class Cache:
    """One cache: its input and what comes of it after this step's tokens are appended."""

    given: Node
    appended: Node


class _Paging:
    """Makes caches for values, each value once, and the attention that reads them."""

    def __init__(self, graph: Graph, first: Node, block: int) -> None:
        self.graph, self.block = graph, block
        self.query_start = first.inputs[3]
        tokens, self.sequences = first.inputs[0].shape[0], self.query_start.shape[0] - 1
        self.context_length = input_(
            name="context_length", type=TensorType("i32", (self.sequences,))
        )
        table: tuple[Dim, ...] = (self.sequences, dim("M"))
        self.block_table = input_(name="block_table", type=TensorType("i32", table))
        self.slots = input_(name="slots", type=TensorType("i32", (tokens,)))
        self.tables = (self.context_length, self.block_table, self.slots)
        self.caches: dict[Node, Cache] = {}

    def paged(self, attention: Node) -> Node:
        """What replaces a ragged attention."""
        if not attention["causal"]:
            where = quote(self.graph, attention)
            raise IRError(f"attention to later tokens has no cache: causal = false\n{where}")
        entries = best_entries(attention, str(self.slots.shape[0]))
        k_cache, v_cache = self.cache(entries.key), self.cache(entries.value)
        plain = {k: v for k, v in attention.attributes.items() if k in _OURS}
        result = serving.paged_attention(
            entries.query, k_cache.appended, v_cache.appended,
            self.block_table, self.query_start, self.context_length, *attention.inputs[4:],
            **plain, value_start=entries.value_start, value_size=entries.value_size,
        )  # fmt: skip
        return entries.result(result)

    def cache(self, value: Node) -> Cache:
        """The cache of a value [T, G, D]."""
        if value not in self.caches:
            entry = tuple(int(d) for d in value.shape[1:])
            kind = CacheType(value.dtype, self.block, entry)
            given = input_(name=f"cache{len(self.caches)}", type=kind)
            self.caches[value] = Cache(given, serving.cache_append(given, value, self.slots))
        return self.caches[value]
