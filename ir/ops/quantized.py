"""Quantized linears: weights of few bits in groups along k, each group with a scale of its own.

A weight w[N, K] is held as codes q[N, J, G] (u8 or u4; J groups of G, J G at least K) and scales
s[N, J]: w[n, j G + i] = (q[n, j, i] - offset) s[n, j]. What J G exceeds K by has the value 0. The
inputs that may follow, in this order: zeros u8[N, J], which stand for the offset group by group
(the attribute is then 0), and a bias. Weights of experts have one more axis in front.
"""

from __future__ import annotations

from typing import NamedTuple

from ..dims import Shape, equal, equal_shapes
from ..errors import IRError
from ..node import Node, op
from ..types import TensorType


class Operands(NamedTuple):
    """The inputs of a quantized linear of any kind, by name; None where it has no such input.
    With multipliers the scales are those of blocks of groups.
    """

    x: Node
    x_scale: Node | None
    codes: Node
    scale: Node
    experts: Node | None
    multipliers: Node | None
    zeros: Node | None
    bias: Node | None


def operands(node: Node) -> Operands:
    """The inputs of any op of this family by what they are."""
    left = list(node.inputs)
    x = left.pop(0)
    x_scale = left.pop(0) if node.op.name.startswith("packed_integer") else None
    codes, scale = left.pop(0), left.pop(0)
    experts = left.pop(0) if node.op.name.endswith("expert_linear") else None
    multipliers = left.pop(0) if left and left[0].dtype == "u4" else None
    zeros = left.pop(0) if left and left[0].dtype == "u8" else None
    bias = left[0] if left else None
    return Operands(x, x_scale, codes, scale, experts, multipliers, zeros, bias)


def _codes(q: TensorType, scale: TensorType) -> None:
    if q.dtype not in ("u8", "u4") or not scale.is_float:
        raise IRError(f"codes u8 or u4 and float scales were wanted, not {q}, {scale}")


def _codes_or_floats(
    q: TensorType, scale: TensorType, more: tuple[TensorType, ...], offset: int
) -> None:
    """Codes of whole numbers; or f8e4m3[.., N, 1, K] with a scale a row, offset 0 and no zeros."""
    if q.dtype != "f8e4m3":
        _codes(q, scale)
        return
    plain = offset == 0 and q.rank >= 3 and q.shape[-2] == 1
    if not plain or not scale.is_float or any(not m.is_float for m in more):
        raise IRError(f"f8e4m3[.., N, 1, K], offset 0 and no zeros were wanted, not {q}, {more}")


def _extras(more: tuple[TensorType, ...], scale: TensorType, offset: int) -> None:
    """What follows the scales: zeros of their shape, and a bias."""
    zeros, *bias = more if more and more[0].dtype == "u8" else (None, *more)
    if len(bias) > 1 or any(not b.is_float for b in bias):
        raise IRError(f"zeros u8 and one float bias at most were wanted, not {more}")
    if zeros is not None and (offset or not equal_shapes(zeros.shape, scale.shape)):
        raise IRError(f"zeros like {scale} and offset 0 were wanted, not {zeros}, offset {offset}")


def _without_multipliers(more: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    if not more or more[0].dtype != "u4":
        return more
    if len(more) > 1 and more[1].dtype == "u8":
        raise IRError(f"multipliers or zeros were wanted, not both: {more}")
    return more[1:]


def _covers(x: TensorType, q: TensorType, scale: TensorType) -> None:
    """Whether q[..., N, J, G] and scale[..., N, J] cover the last dim of x."""
    j, g, k = q.shape[-2], q.shape[-1], x.shape[-1]
    sized = isinstance(j, int) and isinstance(g, int) and isinstance(k, int)
    if not equal(j, scale.shape[-1]) or not sized or not (j - 1) * g < k <= j * g:
        raise IRError(f"groups of {q} with {scale} do not cover the last dim of {x}")


def _routes(index: TensorType, rows: Shape) -> None:
    if index.dtype not in ("i32", "i64") or not equal_shapes(index.shape, rows):
        raise IRError(f"an index i32 or i64 of {rows} was wanted, not {index}")


def _integers(x: TensorType, x_scale: TensorType) -> None:
    if x.dtype != "i8" or x_scale.dtype != "f32" or x.rank != x_scale.rank + 1:
        raise IRError(f"x i8[..., J, G] and scales f32[..., J] were wanted, not {x}, {x_scale}")


@op()
def group_scales(multipliers: TensorType, scale: TensorType) -> TensorType:
    """The scales of groups in two levels: y[..., j] = multipliers[..., j] scale[..., j // P], where
    multipliers are u4[..., J] and scale is [..., B], one for each block of P = J / B groups.
    """
    groups, blocks = multipliers.shape[-1], scale.shape[-1]
    sized = isinstance(groups, int) and isinstance(blocks, int)
    rows = equal_shapes(multipliers.shape[:-1], scale.shape[:-1])
    if not sized or multipliers.dtype != "u4" or not rows or not scale.is_float or groups % blocks:
        raise IRError(
            f"multipliers u4[..., J] and scale[..., B] were wanted, not {multipliers}, {scale}"
        )
    return scale.with_shape(multipliers.shape)


@op("contraction")
def quantized_linear(
    x: TensorType, q: TensorType, scale: TensorType, *more: TensorType, offset: int
) -> TensorType:
    """x[..., K] @ w^T + bias[N] with w[n, j G + i] = (q[n, j, i] - offset) scale[n, j].

    With zeros[N, J], those in place of the offset. Sums in float32 or wider, rounded to x's dtype
    once. Codes may be f8e4m3[N, 1, K] with a scale a row, offset 0 and no zeros.
    """
    _codes_or_floats(q, scale, more, offset)
    _extras(more, scale, offset)
    if q.rank != 3 or scale.rank != 2 or not equal(q.shape[0], scale.shape[0]):
        raise IRError(f"q[N, J, G] and scale[N, J] were wanted, not {q}, {scale}")
    _covers(x, q, scale)
    return x.with_shape((*x.shape[:-1], q.shape[0]))


@op("contraction")
def quantized_expert_linear(
    x: TensorType,
    q: TensorType,
    scale: TensorType,
    index: TensorType,
    *more: TensorType,
    offset: int,
) -> TensorType:
    """quantized_linear of each row by the codes q[e, N, J, G], scales, zeros and bias[e, N] of its
    expert e = index[...].
    """
    _codes_or_floats(q, scale, more, offset)
    _extras(more, scale, offset)
    if q.rank != 4 or scale.rank != 3 or not equal_shapes(q.shape[:2], scale.shape[:2]):
        raise IRError(f"q[E, N, J, G] and scale[E, N, J] were wanted, not {q}, {scale}")
    _covers(x, q, scale)
    _routes(index, x.shape[:-1])
    return x.with_shape((*x.shape[:-1], q.shape[1]))


@op("contraction")
def packed_quantized_linear(
    x: TensorType,
    q: TensorType,
    scale: TensorType,
    *more: TensorType,
    n: int,
    group: int,
    offset: int,
    layout: str,
) -> TensorType:
    """quantized_linear by codes, scales and zeros in a kernel's own layout, named by a word."""
    _codes(q, scale)
    _extras(more, scale, offset)
    return x.with_shape((*x.shape[:-1], n))


@op("contraction")
def packed_quantized_expert_linear(
    x: TensorType,
    q: TensorType,
    scale: TensorType,
    index: TensorType,
    *more: TensorType,
    n: int,
    group: int,
    offset: int,
    layout: str,
) -> TensorType:
    """quantized_expert_linear in a kernel's own layout, named by a word."""
    _codes(q, scale)
    _extras(more, scale, offset)
    _routes(index, x.shape[:-1])
    return x.with_shape((*x.shape[:-1], n))


@op("contraction")
def packed_integer_linear(
    x: TensorType,
    x_scale: TensorType,
    q: TensorType,
    scale: TensorType,
    *more: TensorType,
    n: int,
    offset: int,
    layout: str,
    dtype: str,
) -> TensorType:
    """packed_quantized_linear of x = x[..., J, G] x_scale[..., J], codes i8 with scales f32.

    y[n] = sum over j of x_scale[j] scale[n, j] (sum over i of x[j, i] (q[n, j, i] - offset)),
    the inner sums in whole numbers; rounded to dtype once. `more` may begin with multipliers u4 of
    group_scales, packed: x is then i8[..., B, P G] with a scale for each block, as w has, and the
    sums of a group are times its multiplier in whole numbers.
    """
    _codes(q, scale)
    _extras(_without_multipliers(more), scale, offset)
    _integers(x, x_scale)
    return TensorType(dtype, (*x.shape[:-2], n))


@op("contraction")
def packed_integer_expert_linear(
    x: TensorType,
    x_scale: TensorType,
    q: TensorType,
    scale: TensorType,
    index: TensorType,
    *more: TensorType,
    n: int,
    offset: int,
    layout: str,
    dtype: str,
) -> TensorType:
    """packed_integer_linear of each row by the codes, scales, zeros and bias of its expert."""
    _codes(q, scale)
    _extras(_without_multipliers(more), scale, offset)
    _integers(x, x_scale)
    _routes(index, x.shape[:-2])
    return TensorType(dtype, (*x.shape[:-2], n))
