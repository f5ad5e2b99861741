"""Reference values of the model ops."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .context import Context

Tensor = torch.Tensor


def linear(context: Context, x: Tensor, w: Tensor, *bias: Tensor) -> Tensor:
    """x @ w^T + bias."""
    a, b, *c = context.math(x, w, *bias)
    return torch.nn.functional.linear(a, b, *c).to(x.dtype)


def rms_norm(context: Context, x: Tensor, *w: Tensor, eps: float, offset: float) -> Tensor:
    """x / rms(x) * (offset + w)."""
    a, *weights = context.math(x, *w)
    result = a * torch.rsqrt(a.square().mean(-1, keepdim=True) + eps)
    for weight in weights:
        result = result * (offset + weight)
    return result.to(x.dtype)


def layer_norm(context: Context, x: Tensor, *wb: Tensor, eps: float) -> Tensor:
    """(x - mean) / sqrt(var + eps) * w + b."""
    a, *weights = context.math(x, *wb)
    result = torch.nn.functional.layer_norm(a, a.shape[-1:], *weights, eps=eps)
    return result.to(x.dtype)


def visible(queries: Tensor, keys: Tensor, *, causal: bool, window: int, chunk: int) -> Tensor:
    """Which of the keys' positions [L] each of the queries' positions [S] sees: bool [S, L]."""
    i, j = queries[:, None], keys[None, :]
    seen = torch.ones(queries.shape[0], keys.shape[0], dtype=torch.bool)
    if causal:
        seen = seen & (j <= i)
    if window:
        seen = seen & ((i - j).abs() < window)
    if chunk:
        ordinal = (torch.div(x, chunk, rounding_mode="floor") for x in (i, j))
        seen = seen & (next(ordinal) == next(ordinal))
    return seen


def chosen(places: Tensor, keys: int) -> Tensor:
    """Whether each of so many keys is among the places [..., count]: bool [..., keys]."""
    room = torch.zeros(*places.shape[:-1], keys + 1, dtype=torch.bool)
    held = torch.where(places < 0, keys, places).long()
    return room.scatter(-1, held, True)[..., :keys]


def position_terms(queries: Tensor, keys: Tensor, extras: Mapping[str, Tensor]) -> Tensor | float:
    """What "slopes", "bias" and "distances" add to the scores, [H, S, L]."""
    total: Tensor | float = 0.0
    distance = queries[:, None] - keys[None, :]
    if "slopes" in extras:
        total = total - extras["slopes"][:, None, None] * distance
    if "bias" in extras:
        table = extras["bias"]
        total = total + table[:, distance.clamp(0, table.shape[1] - 1)]
    if "distances" in extras:
        table = extras["distances"]
        most = table.shape[1] // 2
        total = total + table[:, distance.clamp(-most, most) + most]
    return total


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    allowed: Tensor | None,
    added: Tensor | float,
    *,
    scale: float,
    softcap: float,
    sinks: Tensor | None,
) -> Tensor:
    """softmax(softcap(scale q k^T) + added where allowed) v over [..., H, S, D]; a query that sees
    no key gives 0.
    """
    repeat = q.shape[-3] // k.shape[-3]
    k, v = (t.repeat_interleave(repeat, dim=-3) for t in (k, v))
    scores = q @ k.transpose(-2, -1) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores + added
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    if sinks is not None:
        column = sinks[:, None, None].expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, column], -1)
    weights = scores.softmax(-1).nan_to_num(0.0)
    return weights[..., : k.shape[-2]] @ v


def attention(
    context: Context,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *more: Tensor,
    scale: float,
    causal: bool,
    window: int,
    chunk: int,
    softcap: float,
    extras: Sequence[str],
) -> Tensor:
    """Attention over [B, H, S, D]."""
    a, b, c, *rest = context.math(q, k, v, *more)
    named = dict(zip(extras, rest, strict=True))
    queries, keys = torch.arange(q.shape[2]), torch.arange(k.shape[2])
    allowed = visible(queries, keys, causal=causal, window=window, chunk=chunk)
    added = position_terms(queries, keys, named)
    if "selected" in named:
        allowed = allowed & chosen(named["selected"], k.shape[2])[:, None]
    mask = named.get("mask")
    if mask is not None and mask.dtype == torch.bool:
        allowed = allowed & mask
    elif mask is not None:
        added = added + mask
    result = attend(a, b, c, allowed, added, scale=scale, softcap=softcap, sinks=named.get("sinks"))
    return result.to(q.dtype)


def expert_linear(context: Context, x: Tensor, w: Tensor, index: Tensor, *bias: Tensor) -> Tensor:
    """w[index] @ x (+ bias[index]), a row at a time."""
    a, b, *c = context.math(x, w, *bias)
    result = (b[index.long()] @ a[..., None])[..., 0]
    for each in c:
        result = result + each[index.long()]
    return result.to(x.dtype)


TABLE: Mapping[str, Callable[..., Any]] = {
    "linear": linear,
    "rms_norm": rms_norm,
    "layer_norm": layer_norm,
    "attention": attention,
    "expert_linear": expert_linear,
}
