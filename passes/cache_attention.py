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
from ..ir.ops import contexts, selection, serving, tensor
from ..ir.types import CacheType, TensorType
from ..ir.verify import quote
from .cache_entries import best_entries
from .layout_codes import quantized_rows
from .token_values import T

CACHED = ("bf16", "f16", "i8")
"""The dtypes that caches are asked for in."""

_OURS = frozenset({"causal", "window", "chunk", "softcap", "scale", "extras"})


@dataclass(frozen=True)
class CacheAttention:
    """Turn every ragged_attention into a paged_attention over caches, every ragged_context into a
    paged_context, and append to these first.

    The graph gains inputs (context_length i32[N], block_table i32[N, M], slots i32[T], the caches)
    and gives the caches back as further outputs. `block` is slots a block; `max_context` bounds the
    tokens of a sequence. `dtype` is that of the caches: bf16, f16, i8 with a scale for each token
    and head in a cache of its own, or "" for what is computed.
    """

    name: ClassVar[str] = "cache-attention"
    block: int = 16
    max_context: int = 4096
    dtype: str = ""

    def run(self, graph: Graph) -> Graph:
        """The graph in paged form; attentions whose keys and values are the same values share their
        caches.
        """
        attentions = [n for n in graph.nodes() if n.op is serving.ragged_attention]
        others = [n for n in graph.nodes() if n.op is contexts.ragged_context]
        if not attentions and not others:
            return graph
        if self.dtype not in ("", *CACHED):
            raise IRError(f"caches of {self.dtype!r}; known: {', '.join(CACHED)}")
        paging = _Paging(graph, _starts((*attentions, *others)[0]), self.block, self.dtype)
        mapping = {a: paging.paged(a) for a in attentions}
        mapping |= {n: paging.context(n) for n in others}
        picked = [n for n in graph.nodes() if n.op is selection.ragged_selected_keys]
        mapping |= {n: paging.selected(n) for n in picked}
        caches = [c for found in paging.caches.values() for c in found.parts()]
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
    """One cache: its input, what comes of it after this step's tokens are appended, and the cache
    of its scales where it holds codes.
    """

    given: Node
    appended: Node
    scale: Cache | None = None

    def parts(self) -> tuple[Cache, ...]:
        """Itself, and the cache of its scales if it has one."""
        return (self,) if self.scale is None else (self, self.scale)


class _Paging:
    """Makes caches for values, each value once, and the attention that reads them."""

    def __init__(self, graph: Graph, query_start: Node, block: int, dtype: str) -> None:
        self.graph, self.block, self.dtype = graph, block, dtype
        self.query_start = query_start
        tokens, self.sequences = T, self.query_start.shape[0] - 1
        self.context_length = input_(
            name="context_length", type=TensorType("i32", (self.sequences,))
        )
        table: tuple[Dim, ...] = (self.sequences, dim("M"))
        self.block_table = input_(name="block_table", type=TensorType("i32", table))
        self.slots = input_(name="slots", type=TensorType("i32", (tokens,)))
        self.tables = (self.context_length, self.block_table, self.slots)
        self.caches: dict[tuple[Node, bool], Cache] = {}

    def paged(self, attention: Node) -> Node:
        """What replaces a ragged attention."""
        if not attention["causal"]:
            where = quote(self.graph, attention)
            raise IRError(f"attention to later tokens has no cache: causal = false\n{where}")
        entries = best_entries(attention, str(self.slots.shape[0]))
        k_cache, v_cache = self.cache(entries.key), self.cache(entries.value)
        plain = {k: v for k, v in attention.attributes.items() if k in _OURS}
        words = (("k_scale", k_cache.scale), ("v_scale", v_cache.scale))
        scales = {word: c.appended for word, c in words if c is not None}
        plain["extras"] = (*attention["extras"], *scales)
        result = serving.paged_attention(
            entries.query, k_cache.appended, v_cache.appended,
            self.block_table, self.query_start, self.context_length, *attention.inputs[4:],
            *scales.values(),
            **plain, value_start=entries.value_start, value_size=entries.value_size,
        )  # fmt: skip
        return entries.result(result)

    def selected(self, node: Node) -> Node:
        """What replaces a selection: its keys lie in a cache of their own, in the dtype that they
        are computed in where the others hold codes.
        """
        q, k, weights, _ = node.inputs
        cache = self.cache(k, in_codes=False)
        return selection.paged_selected_keys(
            q, weights, cache.appended,
            self.block_table, self.query_start, self.context_length, **node.attributes,
        )  # fmt: skip

    def context(self, node: Node) -> Node:
        """What replaces a ragged context: what it sees of every token lies in caches."""
        own, seen = int(node["own"]), int(node["seen"])
        caches = [self.cache(z, in_codes=False) for z in node.inputs[own : own + seen]]
        return contexts.paged_context(
            *node.inputs[:own], *(c.appended for c in caches),
            self.slots, self.block_table, self.query_start, self.context_length,
            *node.inputs[own + seen + 1 :], **node.attributes,
        )  # fmt: skip

    def cache(self, value: Node, *, in_codes: bool = True) -> Cache:
        """The cache of a value [T, G, D]; `in_codes`: as codes and scales, where caches are i8."""
        in_codes = in_codes and self.dtype == "i8"
        if (value, in_codes) not in self.caches:
            name = f"cache{len(self.caches)}"
            self.caches[value, in_codes] = self._appended(name, value, in_codes=in_codes)
        return self.caches[value, in_codes]

    def _appended(self, name: str, value: Node, *, in_codes: bool) -> Cache:
        scale = None
        if in_codes:
            value, scales = _codes(value)
            scale = self._plain(f"{name}_scale", scales)
        elif self.dtype not in ("", "i8"):
            value = tensor.cast(value, dtype=self.dtype)
        return replace(self._plain(name, value), scale=scale)

    def _plain(self, name: str, value: Node) -> Cache:
        kind = CacheType(value.dtype, self.block, tuple(int(d) for d in value.shape[1:]))
        given = input_(name=name, type=kind)
        return Cache(given, serving.cache_append(given, value, self.slots))


def _starts(node: Node) -> Node:
    """Where sequences start, as an attention or a context reads it."""
    if node.op is contexts.ragged_context:
        return node.inputs[int(node["own"]) + int(node["seen"])]
    return node.inputs[3]


def _codes(value: Node) -> tuple[Node, Node]:
    """value[T, G, D] as i8 codes and the scales f32[T, G] that they are multiplied by."""
    codes, scales = quantized_rows(value, 1, int(value.shape[2]))
    return (
        tensor.reshape(codes, shape=value.shape),
        tensor.reshape(scales, shape=value.shape[:2]),
    )
