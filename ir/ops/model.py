"""Model ops: what language models are made of, raised from tensor ops by rules."""

from __future__ import annotations

from ..dims import Dim, Shape, dim_text, equal, equal_shapes, exact_quotient, shape_text
from ..errors import IRError
from ..node import op
from ..types import TensorType, Type
from .elementwise import broadcast_shapes

EXTRAS = ("mask", "sinks", "slopes", "bias", "distances", "selected")


def heads_divide(q: TensorType, k: TensorType, axis: int) -> None:
    """Refuse query heads that are no multiple of the key heads."""
    if exact_quotient(q.shape[axis], k.shape[axis]) is None:
        raise IRError(f"the heads of {q} are no multiple of the heads of {k}")


def check_extras(extras: tuple[str, ...], given: tuple[Type, ...], known: tuple[str, ...]) -> None:
    """Refuse extra inputs that the words in `extras` do not name, one each."""
    unknown = [e for e in extras if e not in known]
    if unknown or len(extras) != len(given):
        raise IRError(f"extras name {len(given)} inputs out of {known}, not {extras}")


def check_extra_shapes(
    extras: tuple[str, ...],
    given: tuple[TensorType, ...],
    heads: Dim,
    rows: Shape,
    scores: Shape = (),
) -> None:
    """Refuse extras that do not fit the heads, places that are not told for each of the rows, or a
    mask that does not fit the scores.
    """
    ranks = {"sinks": 1, "slopes": 1, "bias": 2, "distances": 2}
    for name, t in zip(extras, given, strict=True):
        if name == "selected":
            if t.dtype != "i32" or not equal_shapes(t.shape[:-1], rows):
                raise IRError(f"places i32[{shape_text(rows)}, count] were wanted, not {t}")
        elif name == "mask":
            if not equal_shapes(broadcast_shapes(t.shape, scores), scores):
                raise IRError(f"the mask {t} does not broadcast to {shape_text(scores)}")
        elif t.rank != ranks[name] or not equal(t.shape[0], heads):
            raise IRError(f"{name} {t} does not fit {dim_text(heads)} heads")


@op("contraction")
def linear(x: TensorType, w: TensorType, *bias: TensorType) -> TensorType:
    """x[..., K] @ w[N, K]^T + bias[N]; accumulates in float32 or wider."""
    if w.rank != 2 or x.rank < 1 or not equal(x.shape[-1], w.shape[1]):
        raise IRError(f"inner dims differ, {x} by {w}")
    for b in bias:
        if b.rank != 1 or not equal(b.shape[0], w.shape[0]):
            raise IRError(f"bias {b} for {w}")
    if len(bias) > 1 or {w.dtype, *(b.dtype for b in bias)} != {x.dtype}:
        raise IRError(f"one dtype was wanted, not {x}, {w} {', '.join(str(b) for b in bias)}")
    return x.with_shape((*x.shape[:-1], w.shape[0]))


@op("axis")
def rms_norm(x: TensorType, *w: TensorType, eps: float, offset: float = 0.0) -> TensorType:
    """x / sqrt(mean(x^2) + eps) * (offset + w) over the last dim (Zhang and Sennrich, 2019).

    The mathematics in float32, rounded to x's dtype once.
    """
    _check_weights(x, w, most=1)
    return x


@op("axis")
def layer_norm(x: TensorType, *wb: TensorType, eps: float) -> TensorType:
    """(x - mean) / sqrt(var + eps) * w + b over the last dim (Ba et al., 2016).

    The mathematics in float32, rounded to x's dtype once.
    """
    _check_weights(x, wb, most=2)
    return x


def _check_weights(x: TensorType, weights: tuple[TensorType, ...], most: int) -> None:
    if not x.is_float or x.rank < 1 or len(weights) > most:
        raise IRError(f"a float tensor and at most {most} weights were wanted, not {x}, {weights}")
    for w in weights:
        if not equal(w.shape[-1], x.shape[-1]) or w.rank != 1:
            raise IRError(f"weight {w} for the last dim of {x}")


@op("contraction", "mixes")
def attention(
    q: TensorType,
    k: TensorType,
    v: TensorType,
    *more: TensorType,
    scale: float,
    causal: bool = False,
    window: int = 0,
    chunk: int = 0,
    softcap: float = 0.0,
    extras: tuple[str, ...] = (),
) -> TensorType:
    """softmax(softcap(scale q k^T) + mask) v; head h of q reads group h G / H of k and v.

    Shapes: q[B, H, S, D], k[B, G, L, D], v[B, G, L, E]. Key j is visible to query i when j <= i
    (causal; torch's is_causal), |i - j| < window (window > 0) and i // chunk == j // chunk (chunk >
    0). softcap(s) = c tanh(s / c), or s where c is 0. Extras name the further inputs: "mask" (bool:
    allowed; float: added to the scores; broadcasts to [B, H, S, L]), "sinks" ([H] logits that join
    the softmax and are dropped), "slopes" ([H]: slope (j - i) is added), "bias" ([H, P]: bias[h,
    min(i - j, P - 1)] is added), "distances" ([H, 2 P - 1]: that at i - j, held within P - 1 to
    both sides, counted from 1 - P on, is added), "selected" (i32[B, S, C]: of the visible keys only
    those whose places it names for a query are seen; -1 names none; places differ and ascend).
    """
    check_extras(extras, more, EXTRAS)
    if not (q.rank == k.rank == v.rank == 4) or not equal(q.shape[3], k.shape[3]):
        raise IRError(f"q[B, H, S, D], k[B, G, L, D], v[B, G, L, E] were wanted, not {q}, {k}, {v}")
    if not equal(k.shape[1], v.shape[1]) or not equal(k.shape[2], v.shape[2]):
        raise IRError(f"k and v differ in heads or length: {k}, {v}")
    batches = equal(q.shape[0], k.shape[0]) and equal(k.shape[0], v.shape[0])
    if not batches or len({q.dtype, k.dtype, v.dtype}) != 1:
        raise IRError(f"one batch and one dtype were wanted, not {q}, {k}, {v}")
    heads_divide(q, k, 1)
    rows = (q.shape[0], q.shape[2])
    check_extra_shapes(extras, more, q.shape[1], rows, (*q.shape[:3], k.shape[2]))
    return q.with_shape((*q.shape[:3], v.shape[3]))


@op("contraction")
def expert_linear(x: TensorType, w: TensorType, index: TensorType, *bias: TensorType) -> TensorType:
    """y[..., :] = w[index[...]] @ x[..., :] (+ bias[index[...]]), with w[E, N, K].

    Each row is multiplied by the weights of its own expert.
    """
    if w.rank != 3 or not equal(x.shape[-1], w.shape[2]) or len(index.shape) != x.rank - 1:
        raise IRError(f"x[..., K], w[E, N, K], index[...] were wanted, not {x}, {w}, {index}")
    if index.dtype not in ("i32", "i64") or len(bias) > 1:
        raise IRError(f"an i32 or i64 index and at most one bias were wanted, not {index}, {bias}")
    for b in bias:
        if b.rank != 2 or not equal(b.shape[1], w.shape[1]):
            raise IRError(f"bias {b} for {w}")
    return x.with_shape((*x.shape[:-1], w.shape[1]))
