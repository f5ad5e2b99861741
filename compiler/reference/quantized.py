"""Reference values of the quantized linears."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from . import model
from .context import Context
from .layouts import columns_of, unpacked

Tensor = torch.Tensor


def weight(q: Tensor, scale: Tensor, zeros: Tensor | int, k: int) -> Tensor:
    """(q - zeros) scale as w[..., N, k], from q[..., N, J, G], scale[..., N, J] and zeros likewise
    or a number.
    """
    wide = scale if scale.dtype == torch.float64 else scale.float()
    zero = zeros if isinstance(zeros, int) else zeros.to(wide.dtype)[..., None]
    return ((q.to(wide.dtype) - zero) * wide[..., None]).flatten(-2)[..., :k]


def group_scales(context: Context, multipliers: Tensor, scale: Tensor) -> Tensor:
    """Each group's multiplier times the scale of its block."""
    per = multipliers.shape[-1] // scale.shape[-1]
    wide = scale if scale.dtype == torch.float64 else scale.float()
    return (multipliers.to(wide.dtype) * wide.repeat_interleave(per, -1)).to(scale.dtype)


def _split(more: Sequence[Tensor], offset: int) -> tuple[Tensor | int, list[Tensor]]:
    """The zeros (the offset where there are none), and a list of the bias."""
    if more and more[0].dtype == torch.uint8:
        return more[0], list(more[1:])
    return offset, list(more)


def quantized_linear(
    context: Context, x: Tensor, q: Tensor, scale: Tensor, *more: Tensor, offset: int
) -> Tensor:
    """x @ weight^T + bias."""
    zeros, bias = _split(more, offset)
    a, *b = context.math(x, *bias)
    w = weight(q, scale, zeros, x.shape[-1]).to(a.dtype)
    return torch.nn.functional.linear(a, w, *b).to(x.dtype)


def quantized_expert_linear(
    context: Context,
    x: Tensor,
    q: Tensor,
    scale: Tensor,
    index: Tensor,
    *more: Tensor,
    offset: int,
) -> Tensor:
    """Each row by the weight of its expert."""
    zeros, bias = _split(more, offset)
    a, *b = context.math(x, *bias)
    w = weight(q, scale, zeros, x.shape[-1]).to(a.dtype)
    return model.expert_linear(context, a, w, index, *b).to(x.dtype)


def _unpacked(
    q: Tensor, scale: Tensor, more: Sequence[Tensor], n: int, group: int, layout: str
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Codes, scales and what follows them as they were before packing."""
    groups = scale.shape[-2]
    codes = unpacked(q, n, groups * group, layout).unflatten(-1, (groups, group))
    beside = columns_of(layout)
    zeros = [unpacked(m, n, groups, beside) for m in more[:1] if m.dtype == torch.uint8]
    return codes, unpacked(scale, n, groups, beside), [*zeros, *more[len(zeros) :]]


def packed_quantized_linear(
    context: Context,
    x: Tensor,
    q: Tensor,
    scale: Tensor,
    *more: Tensor,
    n: int,
    group: int,
    offset: int,
    layout: str,
) -> Tensor:
    """quantized_linear by what the layout unpacks to."""
    codes, scales, rest = _unpacked(q, scale, more, n, group, layout)
    return quantized_linear(context, x, codes, scales, *rest, offset=offset)


def packed_quantized_expert_linear(
    context: Context,
    x: Tensor,
    q: Tensor,
    scale: Tensor,
    index: Tensor,
    *more: Tensor,
    n: int,
    group: int,
    offset: int,
    layout: str,
) -> Tensor:
    """quantized_expert_linear by what the layout unpacks to."""
    codes, scales, rest = _unpacked(q, scale, more, n, group, layout)
    return quantized_expert_linear(context, x, codes, scales, index, *rest, offset=offset)


def packed_integer_linear(
    context: Context,
    x: Tensor,
    x_scale: Tensor,
    q: Tensor,
    scale: Tensor,
    *more: Tensor,
    n: int,
    offset: int,
    layout: str,
    dtype: str,
) -> Tensor:
    """packed_quantized_linear of x times x_scale, in float64."""
    group, scales, more = _one_level(x.shape[-1], scale.double(), more)
    options = {"n": n, "group": group, "offset": offset, "layout": layout}
    wide = _wide(x, x_scale, more)
    result = packed_quantized_linear(context, wide[0], q, scales, *wide[1:], **options)
    return result.to(context.dtype(dtype))


def packed_integer_expert_linear(
    context: Context,
    x: Tensor,
    x_scale: Tensor,
    q: Tensor,
    scale: Tensor,
    index: Tensor,
    *more: Tensor,
    n: int,
    offset: int,
    layout: str,
    dtype: str,
) -> Tensor:
    """packed_quantized_expert_linear of x times x_scale, in float64."""
    group, scales, more = _one_level(x.shape[-1], scale.double(), more)
    options = {"n": n, "group": group, "offset": offset, "layout": layout}
    wide = _wide(x, x_scale, more)
    result = packed_quantized_expert_linear(
        context, wide[0], q, scales, index, *wide[1:], **options
    )
    return result.to(context.dtype(dtype))


def _one_level(
    length: int, scale: Tensor, more: tuple[Tensor, ...]
) -> tuple[int, Tensor, tuple[Tensor, ...]]:
    """The codes of a group, scales of groups [.., B, P, 16] as packed, and what follows, given the
    codes of a block, its scales [.., B, 16] and what may begin with multipliers [.., J / 2, 16, 2].
    """
    if not more or more[0].dtype != torch.uint8 or more[0].shape == scale.shape:
        return length, scale, more
    multipliers = more[0].transpose(-1, -2).flatten(-3, -2)
    per = multipliers.shape[-2] // scale.shape[-2]
    scales = multipliers.to(scale.dtype) * scale.repeat_interleave(per, -2)
    return length // per, scales, more[1:]


def _wide(x: Tensor, x_scale: Tensor, more: Sequence[Tensor]) -> list[Tensor]:
    """x times its scales, then what follows, floats in float64."""
    wide = (x.double() * x_scale.double()[..., None]).flatten(-2)
    return [wide, *(m.double() if m.is_floating_point() else m for m in more)]


TABLE: Mapping[str, Callable[..., Any]] = {
    "group_scales": group_scales,
    "quantized_linear": quantized_linear,
    "quantized_expert_linear": quantized_expert_linear,
    "packed_quantized_linear": packed_quantized_linear,
    "packed_quantized_expert_linear": packed_quantized_expert_linear,
    "packed_integer_linear": packed_integer_linear,
    "packed_integer_expert_linear": packed_integer_expert_linear,
}
