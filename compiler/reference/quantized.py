"""Reference values of the quantized linears."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from .context import Context
from .layouts import unpacked

Tensor = torch.Tensor


def weight(q: Tensor, scale: Tensor, offset: int, k: int) -> Tensor:
    """(q - offset) scale as w[N, k], from q[N, J, G] and scale[N, J]."""
    wide = scale if scale.dtype == torch.float64 else scale.float()
    return ((q.to(wide.dtype) - offset) * wide[..., None]).flatten(-2)[..., :k]


def quantized_linear(
    context: Context, x: Tensor, q: Tensor, scale: Tensor, *bias: Tensor, offset: int
) -> Tensor:
    """x @ weight^T + bias."""
    a, *b = context.math(x, *bias)
    w = weight(q, scale, offset, x.shape[-1]).to(a.dtype)
    return torch.nn.functional.linear(a, w, *b).to(x.dtype)


def packed_quantized_linear(
    context: Context,
    x: Tensor,
    q: Tensor,
    scale: Tensor,
    *bias: Tensor,
    n: int,
    group: int,
    offset: int,
    layout: str,
) -> Tensor:
    """quantized_linear by what the layout unpacks to."""
    groups = scale.shape[-2]
    codes = unpacked(q, n, groups * group, layout).unflatten(-1, (groups, group))
    scales = unpacked(scale, n, groups, "n16")
    return quantized_linear(context, x, codes, scales, *bias, offset=offset)


def packed_integer_linear(
    context: Context,
    x: Tensor,
    x_scale: Tensor,
    q: Tensor,
    scale: Tensor,
    *bias: Tensor,
    n: int,
    offset: int,
    layout: str,
    dtype: str,
) -> Tensor:
    """packed_quantized_linear of x times x_scale, in float64."""
    wide = (x.double() * x_scale.double()[..., None]).flatten(-2)
    options = {"n": n, "group": x.shape[-1], "offset": offset, "layout": layout}
    more = [b.double() for b in bias]
    result = packed_quantized_linear(context, wide, q, scale.double(), *more, **options)
    return result.to(context.dtype(dtype))


TABLE: Mapping[str, Callable[..., Any]] = {
    "quantized_linear": quantized_linear,
    "packed_quantized_linear": packed_quantized_linear,
    "packed_integer_linear": packed_integer_linear,
}
