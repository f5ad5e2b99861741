"""Recurrent ops: causal convolutions and scans over tokens whose state has a fixed size.

Each in three forms: over a batch [B, S], over ragged sequences [T], and over ragged sequences that
go on from states.
"""

from __future__ import annotations

from ..dims import Dim, equal, equal_shapes, exact_quotient, shape_text
from ..errors import IRError
from ..node import op
from ..types import CacheType, TensorType, TupleType


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


@op("contraction", "mixes")
def ragged_conv(x: TensorType, w: TensorType, query_start: TensorType) -> TensorType:
    """causal_conv inside each of N sequences that stand one after another, taps first in w.

    Shapes: x[T, C], w[K, C], query_start[N + 1] -> [T, C]; sequence n is rows query_start[n] to
    query_start[n + 1].
    """
    _check_taps(x, w)
    check_starts(query_start)
    return x


@op("contraction", "mixes")
def ragged_scan(
    q: TensorType,
    k: TensorType,
    v: TensorType,
    log_decay: TensorType,
    query_start: TensorType,
    *beta: TensorType,
) -> TensorType:
    """linear_scan inside each of N sequences that stand one after another.

    Shapes: q[T, G, K], k[T, G, K], v[T, H, V], log_decay[T, H, D], query_start[N + 1],
    beta[T, H] -> y[T, H, V].
    """
    if q.rank != 3:
        raise IRError(f"q[T, G, K] was wanted, not {q}")
    check_scan(q, k, v, log_decay, beta)
    check_starts(query_start)
    return v


@op("contraction", "mixes")
def state_conv(
    x: TensorType,
    w: TensorType,
    state: CacheType,
    query_start: TensorType,
    state_from: TensorType,
    state_to: TensorType,
) -> TupleType:
    """ragged_conv that goes on where a step before ended: (y[T, C], the states behind the step).

    A state holds the K - 1 rows of x before a sequence's first one of this step, [K - 1, C]; that
    of sequence n is read at state_from[n], zeros where that is below 0, and written to state_to[n].
    No two sequences write one state, and none writes what another reads.
    """
    _check_taps(x, w)
    _check_state(state, x.dtype, (w.shape[0] - 1, w.shape[1]))
    check_starts(query_start, state_from, state_to)
    return TupleType((x, state))


@op("contraction", "mixes")
def state_scan(
    q: TensorType,
    k: TensorType,
    v: TensorType,
    log_decay: TensorType,
    state: CacheType,
    query_start: TensorType,
    state_from: TensorType,
    state_to: TensorType,
    *beta: TensorType,
) -> TupleType:
    """ragged_scan that goes on where a step before ended: (y[T, H, V], the states behind the step).

    A state is S f32[H, K, V]; it is read and written as in state_conv.
    """
    if q.rank != 3:
        raise IRError(f"q[T, G, K] was wanted, not {q}")
    check_scan(q, k, v, log_decay, beta)
    _check_state(state, "f32", (v.shape[1], q.shape[2], v.shape[2]))
    check_starts(query_start, state_from, state_to)
    return TupleType((v, state))


def _check_taps(x: TensorType, w: TensorType) -> None:
    fits = x.rank == w.rank == 2 and equal(x.shape[1], w.shape[1])
    if not fits or not x.is_float or w.dtype != x.dtype:
        raise IRError(f"floats x[T, C] and w[K, C] of one dtype were wanted, not {x}, {w}")


def _check_state(state: CacheType, dtype: str, entry: tuple[Dim, ...]) -> None:
    if not state.is_state or state.dtype != dtype or not equal_shapes(state.entry, entry):
        raise IRError(f"a state<{dtype}>{shape_text(entry)} was wanted, not {state}")


def check_starts(query_start: TensorType, *places: TensorType) -> None:
    """Refuse a batch that is not query_start[N + 1] and an i32 for each sequence."""
    sequences = query_start.shape[0] - 1 if query_start.rank == 1 else 0
    for t in (query_start, *places):
        if t.dtype != "i32" or t.rank != 1:
            raise IRError(f"query_start i32[N + 1] and i32[N] were wanted, not {t}")
    for t in places:
        if not equal(t.shape[0], sequences):
            raise IRError(f"an i32 for each sequence of {query_start} was wanted, not {t}")
