"""Serving ops: ragged batches, paged caches, packed weights, kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..dims import Dim, equal, equal_shapes
from ..errors import IRError
from ..node import Node, op
from ..types import CacheType, TensorType, TupleType, Type
from .model import check_extra_shapes, check_extras, heads_divide

if TYPE_CHECKING:
    from ..graph import Graph


@op("contraction", "mixes")
def ragged_attention(
    q: TensorType,
    k: TensorType,
    v: TensorType,
    query_start: TensorType,
    *more: TensorType,
    scale: float,
    causal: bool = True,
    window: int = 0,
    chunk: int = 0,
    softcap: float = 0.0,
    extras: tuple[str, ...] = (),
) -> TensorType:
    """Attention inside each of N sequences that stand one after another.

    Shapes: q[T, H, D], k[T, G, D], v[T, G, E]; sequence n is rows query_start[n] to query_start[n +
    1]. Key j is visible to query i of the same sequence when j <= i (causal), |i - j| < window
    (window > 0), i // chunk == j // chunk (chunk > 0). Extras: "sinks" [H] (logits that join the
    softmax and are dropped), "slopes" [H] (slope (j - i) is added to the score), "bias" f32[H, L]
    (bias[h, min(i - j, L - 1)] is added), "distances" f32[H, 2 L - 1] (that at i - j, held within L
    - 1 to both sides, counted from 1 - L on, is added), "selected" i32[T, C] (of the visible keys
    only those whose places in the sequence it names are seen; -1 names none; places ascend).
    """
    check_extras(extras, more, ("sinks", "slopes", "bias", "distances", "selected"))
    if not (q.rank == k.rank == v.rank == 3) or not equal(q.shape[2], k.shape[2]):
        raise IRError(f"q[T, H, D], k[T, G, D], v[T, G, E] were wanted, not {q}, {k}, {v}")
    if not equal(k.shape[1], v.shape[1]):
        raise IRError(f"k and v differ in heads: {k}, {v}")
    if not equal(k.shape[0], v.shape[0]) or len({q.dtype, k.dtype, v.dtype}) != 1:
        raise IRError(f"k and v of one length and one dtype were wanted, not {q}, {k}, {v}")
    heads_divide(q, k, 1)
    check_extra_shapes(extras, more, q.shape[1], q.shape[:1])
    return q.with_shape((*q.shape[:2], v.shape[2]))


@op("cache")
def cache_append(cache: CacheType, value: TensorType, slots: TensorType) -> CacheType:
    """The cache with value[t] at slot slots[t]; slots below 0 are skipped.

    A slot is offset slots[t] % block of block slots[t] // block.
    """
    if value.dtype != cache.dtype or slots.dtype != "i32":
        raise IRError(f"values of {cache} and slots i32[T] were wanted, not {value}, {slots}")
    fits = equal_shapes(value.shape[1:], cache.entry)
    if not fits or not equal_shapes(slots.shape, value.shape[:1]):
        raise IRError(f"value[T, {cache.entry}] and slots[T] were wanted, not {value}, {slots}")
    return cache


def updated(node: Node) -> tuple[Node | None, Node]:
    """The cache that a node's value is an update of (None: it is none), and the op that makes it:
    an append, or one that gives back states behind its rows.
    """
    if node.op is cache_append:
        return node.inputs[0], node
    writer = node.inputs[0] if node.op.name == "item" else node
    caches = [i for i in writer.inputs if i.type == node.type]
    return (caches[0] if len(caches) == 1 else None), writer


@op("contraction", "mixes")
def paged_attention(
    q: TensorType,
    k_cache: CacheType,
    v_cache: CacheType,
    block_table: TensorType,
    query_start: TensorType,
    context_length: TensorType,
    *more: Type,
    scale: float,
    causal: bool = True,
    window: int = 0,
    chunk: int = 0,
    softcap: float = 0.0,
    value_start: int = 0,
    value_size: int,
    extras: tuple[str, ...] = (),
) -> TensorType:
    """ragged_attention whose keys and values lie in paged caches: q[T, H, D] -> [T, H, value_size].

    k_cache's entry is (G, D), v_cache's (G, E); the value is entry[..., value_start : value_start +
    value_size] of v_cache, so that one cache can serve both (latent attention). Sequence n's token
    p is in block block_table[n, p // block]. context_length[n] counts the sequence's tokens up to
    and including this step, so the token in row i of sequence n has position context_length[n] -
    (query_start[n + 1] - i). Masks and extras as in ragged_attention, over positions. Two more
    extras, "k_scale" and "v_scale", are caches with an entry (G,): what a token's entries of
    k_cache and v_cache are multiplied by; entries of i8 lie between -127 and 127 then.
    """
    check_extras(extras, more, ("sinks", "slopes", "bias", "selected", *_SCALES))
    _check_scales(extras, more, {"k_scale": k_cache, "v_scale": v_cache})
    if len(k_cache.entry) != 2 or len(v_cache.entry) != 2 or k_cache.entry[0] != v_cache.entry[0]:
        raise IRError(f"entries (G, D) and (G, E) were wanted, not {k_cache}, {v_cache}")
    if q.rank != 3 or not equal(q.shape[2], k_cache.entry[1]):
        raise IRError(f"q[T, H, D] for {k_cache} was wanted, not {q}")
    if not 0 <= value_start <= value_start + value_size <= v_cache.entry[1]:
        raise IRError(f"value [{value_start}, {value_start + value_size}) of {v_cache}")
    if block_table.rank != 2 or query_start.rank != 1 or context_length.rank != 1:
        given = f"{block_table}, {query_start}, {context_length}"
        raise IRError(f"block_table[N, M], query_start[N + 1], context_length[N], not {given}")
    plain = {e: m for e, m in zip(extras, more, strict=True) if isinstance(m, TensorType)}
    check_extra_shapes(tuple(plain), tuple(plain.values()), q.shape[1], q.shape[:1])
    heads_divide(q, TensorType(k_cache.dtype, (1, k_cache.entry[0])), 1)
    return q.with_shape((*q.shape[:2], value_size))


_SCALES = ("k_scale", "v_scale")


def _check_scales(
    extras: tuple[str, ...], given: tuple[Type, ...], caches: dict[str, CacheType]
) -> None:
    for name, t in zip(extras, given, strict=True):
        cache = caches.get(name)
        wanted = CacheType("f32", cache.block, cache.entry[:1]) if cache else None
        if t != wanted and (wanted or not isinstance(t, TensorType)):
            raise IRError(f"{name} is {t}; {wanted or 'a tensor'} was wanted")


@op("contraction")
def packed_linear(
    x: TensorType, w: TensorType, *bias: TensorType, n: int, layout: str
) -> TensorType:
    """linear by a weight in a kernel's own layout, named by a word; result [..., n]."""
    if len(bias) > 1:
        raise IRError(f"one bias at most, not {bias}")
    return x.with_shape((*x.shape[:-1], n))


@op("contraction")
def packed_expert_linear(
    x: TensorType, w: TensorType, index: TensorType, *bias: TensorType, n: int, layout: str
) -> TensorType:
    """expert_linear by weights in a kernel's own layout, named by a word; result [..., n]."""
    if len(bias) > 1 or len(index.shape) != x.rank - 1:
        raise IRError(
            f"x[..., K], w, index[...] and one bias at most were wanted, not {x}, {index}"
        )
    return x.with_shape((*x.shape[:-1], n))


@op("kernel")
def kernel(
    *inputs: Type, body: Graph, template: str, options: tuple[tuple[str, int], ...] = ()
) -> Type:
    """A group of ops compiled as one function.

    body.inputs stand for the inputs in order, body.outputs are the results.
    """
    given, wanted = [str(t) for t in inputs], [str(i.type) for i in body.inputs]
    if given != wanted:
        raise IRError(f"the body wants ({', '.join(wanted)}), not ({', '.join(given)})")
    types = tuple(o.type for o in body.outputs)
    return types[0] if len(types) == 1 else TupleType(types)


def rows_of(t: Type) -> Dim:
    """The leading dim of a tensor type."""
    if not isinstance(t, TensorType) or not t.rank:
        raise IRError(f"a tensor with rows was wanted, not {t}")
    return t.shape[0]
