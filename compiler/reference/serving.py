"""Reference values of the serving ops."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from . import model
from .context import Context
from .layouts import unpacked

Tensor = torch.Tensor


def ragged_attention(
    context: Context,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_start: Tensor,
    *more: Tensor,
    extras: Sequence[str],
    **options: Any,
) -> Tensor:
    """Attention inside each sequence of q[T, H, D], k[T, G, D], v[T, G, E]."""
    a, b, c, *rest = context.math(q, k, v, *more)
    named = dict(zip(extras, rest, strict=True))
    result = a.new_zeros(*q.shape[:2], v.shape[2])
    bounds = query_start.tolist()
    for start, stop in pairwise(bounds):
        rows = slice(start, stop)
        positions = torch.arange(stop - start)
        own = _of_rows(named, rows)
        result[rows] = _sequence(a[rows], b[rows], c[rows], positions, positions, own, options)
    return result.to(q.dtype)


def _of_rows(extras: Mapping[str, Tensor], rows: slice) -> dict[str, Tensor]:
    """The extras of some rows: what was selected is told row by row."""
    return {name: x[rows] if name == "selected" else x for name, x in extras.items()}


def _sequence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: Tensor,
    keys: Tensor,
    extras: Mapping[str, Tensor],
    options: Mapping[str, Any],
) -> Tensor:
    """Attention of one sequence: q[S, H, D], k[L, G, D], v[L, G, E] at their positions."""
    masks = {name: options[name] for name in ("causal", "window", "chunk")}
    seen = model.visible(queries, keys, **masks)
    if "selected" in extras:
        seen &= model.chosen(extras["selected"], len(keys))
    out = model.attend(
        q.transpose(0, 1),
        k.transpose(0, 1),
        v.transpose(0, 1),
        seen,
        model.position_terms(queries, keys, extras),
        scale=options["scale"],
        softcap=options["softcap"],
        sinks=extras.get("sinks"),
    )
    return out.transpose(0, 1)


def cache_append(context: Context, cache: Tensor, value: Tensor, slots: Tensor) -> Tensor:
    """A copy of the cache [C, block, *entry] with value[t] at slot slots[t]; slots below 0 are
    skipped.
    """
    flat = cache.clone().flatten(0, 1)
    kept = slots >= 0
    flat[slots[kept].long()] = value[kept]
    return flat.view(cache.shape)


def paged_attention(
    context: Context,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    query_start: Tensor,
    context_length: Tensor,
    *more: Tensor,
    value_start: int,
    value_size: int,
    extras: Sequence[str],
    **options: Any,
) -> Tensor:
    """Attention of q[T, H, D] over the tokens that each sequence has in its blocks."""
    a, *rest = context.math(q, *more)
    named = dict(zip(extras, rest, strict=True))
    result = a.new_zeros(*q.shape[:2], value_size)
    bounds = query_start.tolist()
    for n, (start, stop) in enumerate(pairwise(bounds)):
        total = int(context_length[n])
        if stop == start:
            continue
        k = gathered(k_cache, block_table[n], total)
        v = gathered(v_cache, block_table[n], total)[..., value_start : value_start + value_size]
        k, v = context.math(context.widened(k), context.widened(v))
        k, v = (
            x * gathered(named[s], block_table[n], total)[..., None] if s in named else x
            for x, s in ((k, "k_scale"), (v, "v_scale"))
        )
        queries = torch.arange(total - (stop - start), total)
        rows = slice(start, stop)
        own = _of_rows(named, rows)
        result[rows] = _sequence(a[rows], k, v, queries, torch.arange(total), own, options)
    return result.to(q.dtype)


def gathered(cache: Tensor, blocks: Tensor, total: int) -> Tensor:
    """The first `total` entries of a sequence, [total, *entry]; only the blocks that hold them are
    read.
    """
    count = -(-total // cache.shape[1])
    return cache[blocks[:count].long()].flatten(0, 1)[:total]


def kernel(context: Context, *inputs: Any, body: Any, template: str, options: Any) -> Any:
    """The outputs of the body."""
    outputs = context.body(body, inputs, context.sizes)
    return outputs[0] if len(outputs) == 1 else outputs


def packed_linear(
    context: Context, x: Tensor, w: Tensor, *bias: Tensor, n: int, layout: str
) -> Tensor:
    """linear by the weight that the layout unpacks to."""
    return model.linear(context, x, unpacked(w, n, x.shape[-1], layout), *bias)


def packed_expert_linear(
    context: Context, x: Tensor, w: Tensor, index: Tensor, *bias: Tensor, n: int, layout: str
) -> Tensor:
    """expert_linear by the weights that the layout unpacks to."""
    return model.expert_linear(context, x, unpacked(w, n, x.shape[-1], layout), index, *bias)


TABLE: Mapping[str, Callable[..., Any]] = {
    "ragged_attention": ragged_attention,
    "cache_append": cache_append,
    "paged_attention": paged_attention,
    "kernel": kernel,
    "packed_linear": packed_linear,
    "packed_expert_linear": packed_expert_linear,
}
