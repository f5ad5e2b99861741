"""Reference values in a form that tracing can follow: those whose plain form loops over sequences.

Each says the same as its namesake in compiler/reference, over the whole batch at once, or in a form
that torch-mlir lowers rightly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ..errors import CompileError
from ..reference import model, tensor
from ..reference.context import Context

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
    """Attention of q[T, H, D] over k[T, G, D] and v[T, G, E], inside each sequence."""
    a, b, c, *rest = context.math(q, k, v, *more)
    named = dict(zip(extras, rest, strict=True))
    sequence = _sequence_of(query_start, q.shape[0])
    places = torch.arange(q.shape[0])
    masks = {name: options[name] for name in ("causal", "window", "chunk")}
    own = places - query_start.long()[sequence]
    allowed = model.visible(own, own, **masks) & (sequence[:, None] == sequence[None, :])
    out = model.attend(
        a.transpose(0, 1),
        b.transpose(0, 1),
        c.transpose(0, 1),
        allowed,
        model.position_terms(own, own, named),
        scale=options["scale"],
        softcap=options["softcap"],
        sinks=named.get("sinks"),
    )
    return out.transpose(0, 1).to(q.dtype)


def _sequence_of(query_start: Tensor, tokens: int) -> Tensor:
    """The sequence of each token, [T], from the first token of each and the end, [N + 1]."""
    begun = torch.arange(tokens)[:, None] >= query_start.long()[None, 1:]
    return begun.long().sum(-1).clamp(max=query_start.shape[0] - 2)


def cache_append(context: Context, cache: Tensor, value: Tensor, slots: Tensor) -> Tensor:
    """The cache with value[t] at slot slots[t]; what slots below 0 would write goes to a row that
    is then dropped.
    """
    flat = cache.flatten(0, 1)
    spare = torch.cat([flat, flat[:1]])
    places = torch.where(slots >= 0, slots.long(), flat.shape[0])
    written = spare.index_put((places,), value)
    return written[: flat.shape[0]].reshape(cache.shape)


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
    """Attention of q[T, H, D] over all slots of its sequence, those out of sight masked."""
    a, *rest = context.math(q, *more)
    named = dict(zip(extras, rest, strict=True))
    sequence = _sequence_of(query_start, q.shape[0])
    # Each block by itself: StableHLO has no gather of rows of an open length.
    rows = sequence[:, None].expand(q.shape[0], block_table.shape[1])
    blocks = block_table.long().gather(0, rows).clamp(min=0)
    k = _gathered(context, k_cache, blocks)
    v = _gathered(context, v_cache, blocks)[..., value_start : value_start + value_size]
    k, v = (
        x * _gathered(context, named[s], blocks)[..., None] if s in named else x
        for x, s in ((k, "k_scale"), (v, "v_scale"))
    )
    ends = query_start.long()[1:][sequence]
    positions = context_length.long()[sequence] - (ends - torch.arange(q.shape[0]))
    keys = torch.arange(k.shape[1])
    masks = {name: options[name] for name in ("causal", "window", "chunk")}
    allowed = model.visible(positions, keys, **masks)
    allowed = allowed & (keys[None, :] < context_length.long()[sequence][:, None])
    added = model.position_terms(positions, keys, named)
    out = model.attend(
        a[:, :, None],
        k.transpose(1, 2),
        v.transpose(1, 2),
        allowed[:, None, None],
        added.transpose(0, 1)[:, :, None] if isinstance(added, Tensor) else added,
        scale=options["scale"],
        softcap=options["softcap"],
        sinks=named.get("sinks"),
    )
    return out[:, :, 0].to(q.dtype)


def _gathered(context: Context, cache: Tensor, blocks: Tensor) -> Tensor:
    """The entries of each token's sequence, [T, M block, *entry], from blocks[T, M]."""
    (wide,) = context.math(cache[blocks])
    return wide.flatten(1, 2)


def cumsum(context: Context, x: Tensor, *, axis: int) -> Tensor:
    """Running sums, each as the sum of those that are not behind it: StableHLO has none over an
    open length.
    """
    last = tensor.accumulator(x).movedim(axis, -1)
    places = torch.arange(last.shape[-1])
    seen = places[None, :] <= places[:, None]
    total = torch.where(seen, last[..., None, :], torch.zeros((), dtype=last.dtype)).sum(-1)
    return total.movedim(-1, axis).to(x.dtype)


def topk(context: Context, x: Tensor, *, k: int, axis: int, largest: bool) -> tuple[Tensor, ...]:
    """The k largest in order."""
    return tuple(torch.topk(x, k, dim=axis, largest=largest, sorted=True))


def sort(context: Context, x: Tensor, *, axis: int, descending: bool) -> tuple[Tensor, ...]:
    """In order."""
    return tuple(torch.sort(x, dim=axis, descending=descending))


def causal_conv(context: Context, x: Tensor, w: Tensor) -> Tensor:
    """sum_j w[c, j] x[b, s - K + 1 + j, c], the whole batch at once."""
    a, b = context.math(x, w.T)
    length, taps = x.shape[1], w.shape[1]
    padded = torch.nn.functional.pad(a, (0, 0, taps - 1, 0))
    total = padded[:, :length] * b[0]
    for j in range(1, taps):
        total = total + padded[:, j : j + length] * b[j]
    return total.to(x.dtype)


def linear(context: Context, x: Tensor, w: Tensor, *bias: Tensor) -> Tensor:
    """x @ w^T + bias; a batch is kept apart, since torch-mlir merges two dynamic dims wrongly."""
    if x.dim() != 3:
        return model.linear(context, x, w, *bias)
    a, b, *c = context.math(x, w, *bias)
    result = torch.bmm(a, b.T.expand(a.shape[0], *b.T.shape))
    return (result + c[0] if c else result).to(x.dtype)


def reshape(context: Context, x: Tensor, *, shape: tuple[int, ...]) -> Tensor:
    """Another shape.

    torch-mlir (20261001) takes one of two dynamic dims that become one for 1, and says nothing:
    that is refused here.
    """
    merged = {str(d) for d in x.shape if isinstance(d, torch.SymInt)} - {str(d) for d in shape}
    if len(merged) > 1:
        raise CompileError(
            "a reshape makes one dim of several whose sizes are open, which torch-mlir gets wrong: "
            "fix all but one, such as --dims B=1"
        )
    return x.reshape(shape)


TRACEABLE: Mapping[str, Callable[..., Any]] = {
    "linear": linear,
    "reshape": reshape,
    "ragged_attention": ragged_attention,
    "cache_append": cache_append,
    "paged_attention": paged_attention,
    "cumsum": cumsum,
    "topk": topk,
    "sort": sort,
    "causal_conv": causal_conv,
}
