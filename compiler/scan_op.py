"""linear_scan as an op of torch: what a model may call, and what capture helpers put in its place.

It computes in eager torch, one token after another, and stays whole in an export. It has no
gradient.
"""

from __future__ import annotations

import torch

from .reference.recurrent import scan


@torch.library.custom_op("ferrule::linear_scan", mutates_args=())
def linear_scan(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor | None = None,
) -> torch.Tensor:
    """y_t = S_t^T q_t, where S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T, in float32.

    Shapes: q and k [B, S, G, K], v[B, S, H, V], log_decay[B, S, H, K or 1], and beta[B, S, H] for
    the delta rule; y[B, S, H, V] in v's dtype. The op linear_scan of ir/ops/recurrent.py says it
    in full.
    """
    state = torch.zeros(v.shape[2], k.shape[3], v.shape[3], device=v.device)
    rows: list[torch.Tensor] = []
    for b in range(len(v)):
        a, c, d, g = (x[b].float() for x in (q, k, v, log_decay))
        rows.append(scan(a, c, d, g, () if beta is None else (beta[b].float(),), state)[0])
    return torch.stack(rows).to(v.dtype) if rows else torch.empty_like(v)


@linear_scan.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor | None = None,
) -> torch.Tensor:
    return torch.empty_like(v, memory_format=torch.contiguous_format)
