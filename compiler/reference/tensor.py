"""Reference values of the tensor ops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from .context import Context

Tensor = torch.Tensor


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[[Context, Tensor], Tensor]:
    return lambda context, x: function(x)


def _narrow(function: Callable[[Tensor], Tensor]) -> Callable[[Context, Tensor], Tensor]:
    """A function that torch may lack for 16-bit floats: done in float32, rounded once."""
    return lambda context, x: function(*context.math(x)).to(x.dtype)


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda context, x, y: function(x, y)


# -- leaves


def constant(context: Context, *, value: float | int | bool, dtype: str) -> Tensor:
    """A scalar."""
    return torch.tensor(value, dtype=context.dtype(dtype))


def iota(context: Context, *, size: int, dtype: str) -> Tensor:
    """0 to size - 1."""
    return torch.arange(size).to(context.dtype(dtype))


def dim_value(context: Context, *, dim: int, dtype: str) -> Tensor:
    """A dim as a scalar."""
    return torch.tensor(dim, dtype=context.dtype(dtype))


# -- elementwise


def abs_(context: Context, x: Tensor) -> Tensor:
    """|x|; booleans are themselves."""
    return x if x.dtype == torch.bool else x.abs()


def neg(context: Context, x: Tensor) -> Tensor:
    """-x."""
    return -x


def rounding(function: Callable[[Tensor], Tensor]) -> Callable[[Context, Tensor], Tensor]:
    """floor, ceil and round leave integers as they are."""
    return lambda context, x: function(x) if x.is_floating_point() else x.clone()


def gelu(context: Context, x: Tensor, *, approximate: str) -> Tensor:
    """x Phi(x)."""
    return torch.nn.functional.gelu(x, approximate=approximate)


def softplus(context: Context, x: Tensor, *, beta: float, threshold: float) -> Tensor:
    """log(1 + exp(beta x)) / beta."""
    return torch.nn.functional.softplus(x, beta, threshold)


def cast(context: Context, x: Tensor, *, dtype: str) -> Tensor:
    """Another dtype."""
    return x.to(context.dtype(dtype))


def pow_(context: Context, x: Tensor, y: Tensor) -> Tensor:
    """x to the y."""
    return torch.pow(x, y)


def floordiv(context: Context, x: Tensor, y: Tensor) -> Tensor:
    """floor(x / y)."""
    return torch.div(x, y, rounding_mode="floor")


def where(context: Context, c: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """x where c, else y."""
    return torch.where(c, x, y)


# -- reductions and scans


def accumulator(x: Tensor) -> Tensor:
    """What sums of x are made of: at least float32 where x is floating point."""
    return x.float() if x.is_floating_point() and x.dtype.itemsize < 4 else x


def reduce_sum(context: Context, x: Tensor, *, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    """The sum over axes; no axes, no sum."""
    if not axes:
        return x.clone()
    return accumulator(x).sum(axes, keepdim=keepdims).to(x.dtype)


def reduce_prod(context: Context, x: Tensor, *, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    """The product over axes."""
    result = accumulator(x)
    for axis in sorted(axes, reverse=True):
        result = result.prod(axis, keepdim=keepdims)
    return result.to(x.dtype)


def reduce_max(context: Context, x: Tensor, *, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    """The largest over axes."""
    return torch.amax(x, axes, keepdim=keepdims) if axes else x.clone()


def reduce_min(context: Context, x: Tensor, *, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    """The smallest over axes."""
    return torch.amin(x, axes, keepdim=keepdims) if axes else x.clone()


def argmax(context: Context, x: Tensor, *, axis: int, keepdims: bool, checked: bool) -> Tensor:
    """The first place of the largest."""
    place = x.argmax(axis, keepdim=keepdims)
    if not checked:
        return place
    return place.where(x.amax(axis, keepdim=keepdims).isfinite(), -1)  # amax gives a NaN on


def softmax(context: Context, x: Tensor, *, axis: int) -> Tensor:
    """exp(x - max) / sum."""
    (wide,) = context.math(x)
    return wide.softmax(axis).to(x.dtype)


def cumsum(context: Context, x: Tensor, *, axis: int) -> Tensor:
    """Running sums."""
    return accumulator(x).cumsum(axis).to(x.dtype)


def cumprod(context: Context, x: Tensor, *, axis: int) -> Tensor:
    """Running products."""
    return accumulator(x).cumprod(axis).to(x.dtype)


def cummax(context: Context, x: Tensor, *, axis: int) -> Tensor:
    """The largest so far."""
    return x.cummax(axis).values


def logcumsumexp(context: Context, x: Tensor, *, axis: int) -> Tensor:
    """log sum exp(x) so far."""
    return accumulator(x).logcumsumexp(axis).to(x.dtype)


def topk(context: Context, x: Tensor, *, k: int, axis: int, largest: bool) -> tuple[Tensor, ...]:
    """The k largest in order; of equals the first comes first."""
    values, places = torch.sort(x, dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, k), places.narrow(axis, 0, k)


def sort(context: Context, x: Tensor, *, axis: int, descending: bool) -> tuple[Tensor, ...]:
    """In order, stable."""
    return tuple(torch.sort(x, dim=axis, descending=descending, stable=True))


# -- movement


def reshape(context: Context, x: Tensor, *, shape: tuple[int, ...]) -> Tensor:
    """Another shape."""
    return x.reshape(shape)


def transpose(context: Context, x: Tensor, *, permutation: tuple[int, ...]) -> Tensor:
    """Axes in another order."""
    return x.permute(permutation)


def broadcast(context: Context, x: Tensor, *, shape: tuple[int, ...]) -> Tensor:
    """Dims of 1 repeated."""
    return x.expand(shape)


def slice_(context: Context, x: Tensor, *, axis: int, start: int, stop: int, step: int) -> Tensor:
    """[start, stop) by step along an axis."""
    at = [slice(None)] * x.dim()
    at[axis] = slice(start, stop, step)
    return x[tuple(at)]


def concat(context: Context, *xs: Tensor, axis: int) -> Tensor:
    """One after another."""
    return torch.cat(xs, axis)


def pad(
    context: Context, x: Tensor, *, before: tuple[int, ...], after: tuple[int, ...], value: float
) -> Tensor:
    """Constant values around x; negative paddings cut."""
    pairs = [p for axis in reversed(range(x.dim())) for p in (before[axis], after[axis])]
    return torch.nn.functional.pad(x, pairs, value=value)


def flip(context: Context, x: Tensor, *, axes: tuple[int, ...]) -> Tensor:
    """In reverse."""
    return x.flip(axes)


# -- gather and scatter


def take(context: Context, x: Tensor, index: Tensor, *, axis: int) -> Tensor:
    """x at the indices along an axis."""
    flat = x.index_select(axis, index.reshape(-1))
    return flat.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def take_along(context: Context, x: Tensor, index: Tensor, *, axis: int) -> Tensor:
    """torch.gather."""
    return torch.gather(x, axis, index.long())


def scatter(
    context: Context, x: Tensor, index: Tensor, source: Tensor, *, axis: int, reduce: str
) -> Tensor:
    """torch.scatter, or scatter_add."""
    place = x.scatter_add if reduce == "add" else x.scatter
    return place(axis, index.long(), source)


# -- contraction


def matmul(context: Context, x: Tensor, y: Tensor) -> Tensor:
    """x @ y."""
    a, b = context.math(x, y)
    return (a @ b).to(x.dtype)


def conv1d(
    context: Context,
    x: Tensor,
    w: Tensor,
    *bias: Tensor,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
) -> Tensor:
    """Cross-correlation."""
    a, b, *c = context.math(x, w, *bias)
    bias_or_none = c[0] if c else None
    made = torch.nn.functional.conv1d(a, b, bias_or_none, stride, padding, dilation, groups)
    return made.to(x.dtype)


def item(context: Context, t: tuple[Any, ...], *, index: int) -> Any:
    """One of several results."""
    return t[index]


TABLE: Mapping[str, Callable[..., Any]] = {
    "constant": constant,
    "iota": iota,
    "dim_value": dim_value,
    "item": item,
    "neg": neg,
    "abs": abs_,
    **{
        name: _narrow(getattr(torch, name))
        for name in (
            "exp",
            "expm1",
            "log",
            "log1p",
            "sqrt",
            "rsqrt",
            "reciprocal",
            "sin",
            "cos",
            "tanh",
            "sigmoid",
            "erf",
            "erfinv",
        )
    },
    "floor": rounding(torch.floor),
    "ceil": rounding(torch.ceil),
    "round": rounding(torch.round),
    "sign": _unary(torch.sign),
    "relu": _unary(torch.relu),
    "silu": _narrow(torch.nn.functional.silu),
    "gelu": gelu,
    "softplus": softplus,
    "logical_not": _unary(torch.logical_not),
    "bitwise_not": _unary(torch.bitwise_not),
    "cast": cast,
    "add": _binary(torch.add),
    "sub": _binary(torch.sub),
    "mul": _binary(torch.mul),
    "div": _binary(torch.div),
    "floordiv": floordiv,
    "mod": _binary(torch.remainder),
    "pow": pow_,
    "maximum": _binary(torch.maximum),
    "minimum": _binary(torch.minimum),
    "eq": _binary(torch.eq),
    "ne": _binary(torch.ne),
    "lt": _binary(torch.lt),
    "le": _binary(torch.le),
    "gt": _binary(torch.gt),
    "ge": _binary(torch.ge),
    "logical_and": _binary(torch.logical_and),
    "logical_or": _binary(torch.logical_or),
    "bitwise_and": _binary(torch.bitwise_and),
    "bitwise_or": _binary(torch.bitwise_or),
    "bitwise_xor": _binary(torch.bitwise_xor),
    "where": where,
    "reduce_sum": reduce_sum,
    "reduce_prod": reduce_prod,
    "reduce_max": reduce_max,
    "reduce_min": reduce_min,
    "argmax": argmax,
    "softmax": softmax,
    "cumsum": cumsum,
    "cumprod": cumprod,
    "cummax": cummax,
    "logcumsumexp": logcumsumexp,
    "topk": topk,
    "sort": sort,
    "reshape": reshape,
    "transpose": transpose,
    "broadcast": broadcast,
    "slice": slice_,
    "concat": concat,
    "pad": pad,
    "flip": flip,
    "take": take,
    "take_along": take_along,
    "scatter": scatter,
    "matmul": matmul,
    "conv1d": conv1d,
}
