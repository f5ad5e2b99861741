"""Quantized linears: weights of few bits in groups along k, each group with a scale of its own.

A weight w[N, K] is held as codes q[N, J, G] (u8 or u4; J groups of G, J G at least K) and scales
s[N, J]: w[n, j G + i] = (q[n, j, i] - offset) s[n, j]. What J G exceeds K by has the value 0.
"""

from __future__ import annotations

from ..dims import equal
from ..errors import IRError
from ..node import op
from ..types import TensorType


def _one_bias(bias: tuple[TensorType, ...]) -> None:
    if len(bias) > 1:
        raise IRError(f"one bias at most, not {bias}")


def _codes(q: TensorType, scale: TensorType) -> None:
    if q.dtype not in ("u8", "u4") or not scale.is_float:
        raise IRError(f"codes u8 or u4 and float scales were wanted, not {q}, {scale}")


@op("contraction")
def quantized_linear(
    x: TensorType, q: TensorType, scale: TensorType, *bias: TensorType, offset: int
) -> TensorType:
    """x[..., K] @ w^T + bias[N] with w[n, j G + i] = (q[n, j, i] - offset) scale[n, j].

    Sums in float32 or wider, rounded to x's dtype once.
    """
    _codes(q, scale)
    _one_bias(bias)
    if q.rank != 3 or scale.rank != 2 or not equal(q.shape[0], scale.shape[0]):
        raise IRError(f"q[N, J, G] and scale[N, J] were wanted, not {q}, {scale}")
    j, g, k = q.shape[1], q.shape[2], x.shape[-1]
    sized = isinstance(j, int) and isinstance(g, int) and isinstance(k, int)
    if not equal(j, scale.shape[1]) or not sized or not (j - 1) * g < k <= j * g:
        raise IRError(f"groups of {q} with {scale} do not cover the last dim of {x}")
    return x.with_shape((*x.shape[:-1], q.shape[0]))


@op("contraction")
def packed_quantized_linear(
    x: TensorType,
    q: TensorType,
    scale: TensorType,
    *bias: TensorType,
    n: int,
    group: int,
    offset: int,
    layout: str,
) -> TensorType:
    """quantized_linear by codes and scales in a kernel's own layout, named by a word: [..., n]."""
    _codes(q, scale)
    _one_bias(bias)
    return x.with_shape((*x.shape[:-1], n))


@op("contraction")
def packed_integer_linear(
    x: TensorType,
    x_scale: TensorType,
    q: TensorType,
    scale: TensorType,
    *bias: TensorType,
    n: int,
    offset: int,
    layout: str,
    dtype: str,
) -> TensorType:
    """packed_quantized_linear of x = x[..., J, G] x_scale[..., J], codes i8 with scales f32.

    y[n] = sum over j of x_scale[j] scale[n, j] (sum over i of x[j, i] (q[n, j, i] - offset)),
    the inner sums in whole numbers; rounded to dtype once.
    """
    _codes(q, scale)
    _one_bias(bias)
    if x.dtype != "i8" or x_scale.dtype != "f32" or x.rank != x_scale.rank + 1:
        raise IRError(f"x i8[..., J, G] and scales f32[..., J] were wanted, not {x}, {x_scale}")
    return TensorType(dtype, (*x.shape[:-2], n))
