"""Reference values of the recurrent ops."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from .context import Context

Tensor = torch.Tensor


def convolve(x: Tensor, w: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """(y[S, C], the K - 1 rows behind it): sum_j w[j, c] (before, x)[s + j, c] for x[S, C] and the
    K - 1 rows that stand before it.
    """
    rows, size = torch.cat([before, x]), len(x)
    taps = [w[j] * rows[j : j + size] for j in range(len(w))]
    return torch.stack(taps).sum(0), rows[size:]


def scan(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Sequence[Tensor], state: Tensor
) -> tuple[Tensor, Tensor]:
    """(y[S, H, V], the state [H, K, V] behind the last token), one token after another."""
    q, k = (x.repeat_interleave(v.shape[1] // q.shape[1], dim=1) for x in (q, k))
    y = torch.empty_like(v)
    for t in range(len(v)):
        state = state * decay[t].exp()[..., None]
        new = v[t]
        for b in beta:
            new = b[t][:, None] * (new - torch.einsum("hkv,hk->hv", state, k[t]))
        state = state + k[t][..., None] * new[:, None]
        y[t] = torch.einsum("hkv,hk->hv", state, q[t])
    return y, state


def causal_conv(context: Context, x: Tensor, w: Tensor) -> Tensor:
    """The convolution of each sequence of x[B, S, C], zeros before its first token."""
    a, b = context.math(x, w.T)
    before = a.new_zeros(len(b) - 1, b.shape[1])
    return torch.stack([convolve(rows, b, before)[0] for rows in a]).to(x.dtype)


def linear_scan(
    context: Context, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, *beta: Tensor
) -> Tensor:
    """The scan of each sequence of the batch, from a state of zeros."""
    a, b, c, d, *more = context.math(q, k, v, log_decay, *beta)
    state = c.new_zeros(v.shape[2], k.shape[3], v.shape[3])
    rows = range(len(v))
    made = [scan(a[n], b[n], c[n], d[n], [m[n] for m in more], state)[0] for n in rows]
    return torch.stack(made).to(v.dtype)


def ragged_conv(context: Context, x: Tensor, w: Tensor, query_start: Tensor) -> Tensor:
    """The convolution of each sequence of x[T, C]."""
    a, b = context.math(x, w)
    before = a.new_zeros(len(b) - 1, b.shape[1])
    parts = [convolve(a[i:j], b, before)[0] for i, j in pairwise(query_start.tolist())]
    return torch.cat(parts).to(x.dtype)


def ragged_scan(
    context: Context,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    query_start: Tensor,
    *beta: Tensor,
) -> Tensor:
    """The scan of each sequence of v[T, H, V]."""
    a, b, c, d, *more = context.math(q, k, v, log_decay, *beta)
    state = c.new_zeros(v.shape[1], k.shape[2], v.shape[2])
    parts = [
        scan(a[i:j], b[i:j], c[i:j], d[i:j], [m[i:j] for m in more], state)[0]
        for i, j in pairwise(query_start.tolist())
    ]
    return torch.cat(parts).to(v.dtype)


def _begun(states: Tensor, places: Tensor, zeros: Tensor) -> list[Tensor]:
    """The state that each sequence begins with."""
    return [states[p].to(zeros.dtype) if p >= 0 else zeros for p in places.tolist()]


def state_conv(
    context: Context,
    x: Tensor,
    w: Tensor,
    state: Tensor,
    query_start: Tensor,
    state_from: Tensor,
    state_to: Tensor,
) -> tuple[Tensor, Tensor]:
    """The convolution of each sequence behind its state, and a copy of the states with theirs."""
    a, b = context.math(x, w)
    y, after = torch.empty_like(a), state.clone()
    begun = _begun(state, state_from, a.new_zeros(len(b) - 1, b.shape[1]))
    for n, (i, j) in enumerate(pairwise(query_start.tolist())):
        y[i:j], left = convolve(a[i:j], b, begun[n])
        after[state_to[n]] = left.to(state.dtype)
    return y.to(x.dtype), after


def state_scan(
    context: Context,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor,
    query_start: Tensor,
    state_from: Tensor,
    state_to: Tensor,
    *beta: Tensor,
) -> tuple[Tensor, Tensor]:
    """The scan of each sequence from its state, and a copy of the states with theirs."""
    a, b, c, d, *more = context.math(q, k, v, log_decay, *beta)
    y, after = torch.empty_like(c), state.clone()
    begun = _begun(state, state_from, c.new_zeros(state.shape[1:]))
    for n, (i, j) in enumerate(pairwise(query_start.tolist())):
        own = [m[i:j] for m in more]
        y[i:j], left = scan(a[i:j], b[i:j], c[i:j], d[i:j], own, begun[n])
        after[state_to[n]] = left.to(state.dtype)
    return y.to(v.dtype), after


TABLE: Mapping[str, Callable[..., Any]] = {
    "causal_conv": causal_conv,
    "linear_scan": linear_scan,
    "ragged_conv": ragged_conv,
    "ragged_scan": ragged_scan,
    "state_conv": state_conv,
    "state_scan": state_scan,
}
