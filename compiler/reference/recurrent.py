"""Reference values of the recurrent ops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from .context import Context

Tensor = torch.Tensor


def convolve(x: Tensor, w: Tensor, before: Tensor) -> Tensor:
    """sum_j w[c, j] (before, x)[s + j, c] for x[S, C] and the K - 1 rows that stand before it."""
    rows, size = torch.cat([before, x]), len(x)
    taps = [w[:, j] * rows[j : j + size] for j in range(w.shape[1])]
    return torch.stack(taps).sum(0)


def scan(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """(y[S, H, V], the state [H, K, V] behind the last token), one token after another."""
    q, k = (x.repeat_interleave(v.shape[1] // q.shape[1], dim=1) for x in (q, k))
    rows: list[Tensor] = []
    for t in range(len(v)):
        state = state * decay[t].exp()[..., None]
        new = v[t]
        if beta is not None:
            new = beta[t][:, None] * (new - torch.einsum("hkv,hk->hv", state, k[t]))
        state = state + k[t][..., None] * new[:, None]
        rows.append(torch.einsum("hkv,hk->hv", state, q[t]))
    return torch.stack(rows) if rows else v, state


def causal_conv(context: Context, x: Tensor, w: Tensor) -> Tensor:
    """The convolution of each sequence of x[B, S, C], zeros before its first token."""
    a, b = context.math(x, w)
    before = a.new_zeros(w.shape[1] - 1, w.shape[0])
    return torch.stack([convolve(rows, b, before) for rows in a]).to(x.dtype)


def linear_scan(
    context: Context, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, *beta: Tensor
) -> Tensor:
    """The scan of each sequence of the batch, from a state of zeros."""
    given = context.math(q, k, v, log_decay, *beta)
    state = given[2].new_zeros(v.shape[2], k.shape[3], v.shape[3])
    results: list[Tensor] = []
    for each in zip(*given, strict=True):
        own, more = each[:4], each[4] if beta else None
        results.append(scan(*own, more, state)[0])
    return torch.stack(results).to(v.dtype)


TABLE: Mapping[str, Callable[..., Any]] = {
    "causal_conv": causal_conv,
    "linear_scan": linear_scan,
}
