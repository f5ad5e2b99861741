"""Capture helpers: functions of libraries, and what they stand for.

What cannot be exported, or only for the length that it is traced at (a loop in Python over the
tokens or over chunks of them), is called by models through functions that libraries share. Here
each of them is written once more with `linear_scan` or torch's `scan`, under the names that
libraries give it. The names are only guesses: `helped` (in helped.py) runs the model's own function
beside the helper, and a helper stands in for what has the same values alone.

To add one, write the function below with the arguments of the library's, and its names above it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._higher_order_ops.scan import scan
from torch.nn import functional as F

from .scan_op import linear_scan

Function = Callable[..., Any]
Tensor = torch.Tensor
HELPERS: dict[str, Function] = {}


def helper(*names: str) -> Callable[[Function], Function]:
    """Register what stands for the functions of these names."""

    def register(function: Function) -> Function:
        for name in names:
            assert name not in HELPERS, f"{name} has two helpers"
            HELPERS[name] = function
        return function

    return register


@helper("mamba_selective_scan", "selective_scan_fn", "selective_scan_ref")
def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    **_: Any,
) -> Tensor:
    """The scan of Mamba (Gu and Dao, 2023) over x[B, H, S]: a decay for each channel and state.

    dt[B, H, S], A[H, N], B and C [B, N, S], D[H]: S_t = exp(dt A) S + dt B x, y = C S + D x.
    """
    dt = _time_steps(dt, None if delta_bias is None else delta_bias[:, None], delta_softplus)
    steps = dt.float().transpose(1, 2)
    values = (x * dt).float().transpose(1, 2)[..., None]
    keys, queries = (y.float().transpose(1, 2)[:, :, None] for y in (B, C))
    y = linear_scan(queries, keys, values, steps[..., None] * A.float())
    y = y[..., 0].transpose(1, 2)
    y = y if D is None else y + x * D[:, None]
    return y if z is None else y * F.silu(z)


@helper("mamba2_chunk_scan", "mamba_chunk_scan_combined")
def chunk_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    **_: Any,
) -> Tensor:
    """The scan of Mamba 2 (Dao and Gu, 2024) over x[B, S, H, P]: a decay for each head.

    dt[B, S, H], A[H], B and C [B, S, G, N], D[H]: S_t = exp(dt A) S + dt B x, y = C S + D x.
    """
    dt = _time_steps(dt, dt_bias, dt_softplus)
    low, high = dt_limit
    if (low, high) != (0.0, float("inf")) or not dt_softplus:
        dt = dt.clamp(min=low, max=high)
    x, dt = x.float(), dt.float()
    decay = (dt * A.float())[..., None]
    y = linear_scan(C.float(), B.float(), x * dt[..., None], decay)
    return y if D is None else y + x * D[:, None]


def _time_steps(dt: Tensor, bias: Tensor | None, softplus: bool) -> Tensor:
    dt = dt if bias is None else dt + bias.to(dt.dtype)
    return F.softplus(dt) if softplus else dt


@helper(
    "torch_chunk_gated_delta_rule",
    "chunk_gated_delta_rule",
    "chunk_kimi_delta_attention",
    "chunk_kda",
    "torch_recurrent_gated_delta_rule",
    "fused_recurrent_gated_delta_rule",
    "recurrent_kimi_delta_attention",
    "fused_recurrent_kda",
)
def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    use_qk_l2norm_in_kernel: bool = False,
    **_: Any,
) -> tuple[Tensor, None]:
    """The gated delta rule (Yang et al., 2024): q and k [B, S, G, K], v[B, S, H, V], beta[B, S, H].

    g[B, S, H], or [B, S, H, K] (Kimi delta attention), is the logarithm of the decay; queries are
    divided by the root of K, and both normalized to length 1 before where that is asked for.
    """
    queries, keys = (_unit(x.float()) if use_qk_l2norm_in_kernel else x.float() for x in (q, k))
    queries = queries * q.shape[-1] ** -0.5
    decay = g.float() if g.dim() == 4 else g.float()[..., None]
    y = linear_scan(queries, keys, v.float(), decay, beta.float())
    return y.to(q.dtype), None


def _unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


@helper("rwkv_linear_attention", "rwkv_linear_attention_cpu")
def weighted_keys(
    decay: Tensor, first: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, None]:
    """WKV of RWKV (Peng et al., 2023) over key and value [B, S, C]; decay[C] and first[C].

    Sums of exp(k) v and of exp(k) that fade by exp(-exp(decay)) a token, the token itself by
    exp(first + k). They stand as they are, not over the largest key so far: keys stay below 88.
    """
    k, v = key.float(), value.float()
    each = torch.stack([k.exp() * v, k.exp()], dim=-1)
    before = F.pad(each, (0, 0, 0, 0, 1, -1))
    one = k.new_ones(1).expand(*k.shape[:2], 1, 1)
    fading = -torch.exp(decay.float())[:, None].expand(*k.shape, 1)
    above, below = linear_scan(one, one, before, fading).unbind(-1)
    now = torch.exp(first.float() + k)
    return ((above + now * v) / (below + now)).to(key.dtype), None


@helper("wrap_chunkwise_arbitrary_sequence_length")
def matrix_memory(
    *,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    fgate: Tensor,
    igate: Tensor,
    c_initial: Tensor | None = None,
    n_initial: Tensor | None = None,
    m_initial: Tensor | None = None,
    eps: float = 1e-6,
    **_: Any,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """mLSTM of xLSTM (Beck et al., 2024): query and key [B, H, S, K], value[B, H, S, V], logarithms
    of the gates from fgate and igate [B, H, S]; a step for each token, as torch's scan.

    C and n fade by the forget gate and take k v^T and k times the input gate, both over e^m, where
    m is the largest logarithm so far: y = C q / (max(|n q|, e^-m) + eps).
    """
    if any(x is not None for x in (c_initial, n_initial, m_initial)):
        raise ValueError("a sequence that goes on from given states has no values of its own")
    gates = (F.logsigmoid(fgate), igate)
    given = (query * query.shape[-1] ** -0.5, key, value, *gates)
    tokens = tuple(x.movedim(2, 0).float() for x in given)
    q, k, v, fading = tokens[:4]
    outer = (q[0][..., None] * v[0][..., None, :]).detach()
    states = tuple(torch.zeros_like(x) for x in (outer, k[0], fading[0]))

    def step(before: tuple[Tensor, ...], token: tuple[Tensor, ...]) -> Any:
        (c, n, m), (q, k, v, fading, taking) = before, token
        most = torch.maximum(fading + m, taking)
        keep, take = torch.exp(fading + m - most), torch.exp(taking - most)
        c = keep[..., None, None] * c + take[..., None, None] * (k[..., None] * v[..., None, :])
        n = keep[..., None] * n + take[..., None] * k
        below = torch.maximum((q * n).sum(-1).abs(), torch.exp(-most)) + eps
        y = (q[..., None] * c).sum(-2) / below[..., None]
        return (c, n, most), y

    if isinstance(query.shape[2], int):
        rows: list[Tensor] = []
        for at in range(query.shape[2]):
            states, y = step(states, tuple(x[at] for x in tokens))
            rows.append(y)
        made = torch.stack(rows)
    else:
        states, made = scan(step, states, tokens)
    c, n, m = states
    return made.movedim(0, 2).to(query.dtype), (c, n, m[..., None])
