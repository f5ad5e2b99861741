"""Recurrent ops: causal convolutions and scans over tokens whose state has a fixed size."""

from __future__ import annotations

from ..dims import equal, equal_shapes, exact_quotient
from ..errors import IRError
from ..node import op
from ..types import TensorType


def check_conv(x: TensorType, w: TensorType) -> None:
    """Refuse a convolution of x[..., C] whose weight is not w[C, K] of the same floats."""
    if not x.is_float or w.rank != 2 or not equal(x.shape[-1], w.shape[0]) or w.dtype != x.dtype:
        raise IRError(f"floats x[..., C] and w[C, K] of one dtype were wanted, not {x}, {w}")


def check_scan(
    q: TensorType,
    k: TensorType,
    v: TensorType,
    log_decay: TensorType,
    beta: tuple[TensorType, ...],
) -> None:
    """Refuse operands of a scan, [..., heads, size], that do not fit one another."""
    if q.shape != k.shape or q.dtype != k.dtype:
        raise IRError(f"q and k of one shape and dtype were wanted, not {q}, {k}")
    if not equal_shapes(q.shape[:-2], v.shape[:-2]) or len(v.shape) != len(q.shape):
        raise IRError(f"q[..., G, K] and v[..., H, V] on the same tokens were wanted, not {q}, {v}")
    if exact_quotient(v.shape[-2], q.shape[-2]) is None:
        raise IRError(f"the heads of {v} are no multiple of the heads of {q}")
    decays = [(*v.shape[:-1], 1), (*v.shape[:-1], q.shape[-1])]
    if not any(equal_shapes(log_decay.shape, d) for d in decays):
        raise IRError(f"a log_decay of [..., H, 1] or [..., H, K] was wanted, not {log_decay}")
    if len(beta) > 1 or any(not equal_shapes(b.shape, v.shape[:-1]) for b in beta):
        raise IRError(f"one beta[..., H] at most was wanted for {v}, not {beta}")
    if not all(t.is_float for t in (q, v, log_decay, *beta)):
        raise IRError(f"floats were wanted, not {q}, {v}, {log_decay}, {beta}")


@op("contraction", "mixes")
def causal_conv(x: TensorType, w: TensorType) -> TensorType:
    """y[b, s, c] = sum_j w[c, j] x[b, s - K + 1 + j, c], where x is zero before the first token.

    Shapes: x[B, S, C], w[C, K] -> [B, S, C]. Sums in float32.
    """
    if x.rank != 3:
        raise IRError(f"x[B, S, C] was wanted, not {x}")
    check_conv(x, w)
    return x


@op("contraction", "mixes")
def linear_scan(
    q: TensorType, k: TensorType, v: TensorType, log_decay: TensorType, *beta: TensorType
) -> TensorType:
    """y_t = S_t^T q_t, where S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T and S_{-1} = 0.

    With beta the delta rule (Yang et al., 2024): what S' = diag(exp(g_t)) S_{t-1} holds for k_t
    moves towards v_t, S_t = S' + beta_t k_t (v_t - S'^T k_t)^T. Shapes: q[B, S, G, K],
    k[B, S, G, K], v[B, S, H, V], the logarithm g of the decay [B, S, H, D] with D = K, or 1 for
    all rows of the state alike, beta[B, S, H] -> y[B, S, H, V]; head h of v reads group h G / H
    of q and k. The state S is [K, V] for each head; it and the sums are in float32, y in v's dtype.
    """
    if q.rank != 4:
        raise IRError(f"q[B, S, G, K] was wanted, not {q}")
    check_scan(q, k, v, log_decay, beta)
    return v
