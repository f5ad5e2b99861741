"""ATen ops along axes: sums, extremes, norms, softmax, scans, sorting."""

from __future__ import annotations

from typing import Any

from ...ir.dims import Dim, product
from ...ir.node import Node, item
from ...ir.ops import model as m
from ...ir.ops import tensor as t
from .movement import part
from .table import (
    DTYPES,
    Call,
    Table,
    Unsupported,
    axes_of,
    axis_of,
    cast,
    operand,
    reshape,
    widened,
)

TABLE = Table()


@TABLE("sum", "sum.dim_IntList")
def sum_(
    call: Call, x: Node, axes: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Node:
    """The sum over axes, in the result's dtype."""
    return t.reduce_sum(cast(x, call.dtype), axes=axes_of(axes, len(x.shape)), keepdims=keepdim)


@TABLE("prod")
def prod(
    call: Call, x: Node, axis: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Node:
    """The product over an axis, or over all."""
    return t.reduce_prod(cast(x, call.dtype), axes=axes_of(axis, len(x.shape)), keepdims=keepdim)


def _mean(x: Node, axes: tuple[int, ...], keepdims: bool) -> Node:
    count = operand(product(x.shape[a] for a in axes), x.dtype)
    return t.div(t.reduce_sum(x, axes=axes, keepdims=keepdims), count)


@TABLE("mean")
def mean(
    call: Call, x: Node, axes: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Node:
    """The mean over axes; 16-bit floats in float32, rounded once."""
    wide = cast(x, widened(call.dtype))
    return cast(_mean(wide, axes_of(axes, len(x.shape)), keepdim), call.dtype)


def _variance(x: Node, axes: tuple[int, ...], correction: int, keepdims: bool) -> Node:
    centred = t.sub(x, _mean(x, axes, True))
    count = product(x.shape[a] for a in axes)
    total = t.reduce_sum(t.mul(centred, centred), axes=axes, keepdims=keepdims)
    return t.div(total, operand(count - correction if correction else count, x.dtype))


@TABLE("var", "var.correction")
def var(
    call: Call, x: Node, axes: Any = None, *_: Any, correction: Any = 1, keepdim: bool = False
) -> Node:
    """The mean squared distance from the mean, over count - correction."""
    wide = cast(x, widened(call.dtype))
    listed = axes_of(axes, len(x.shape))
    return cast(
        _variance(wide, listed, 1 if correction is None else correction, keepdim), call.dtype
    )


@TABLE("var.dim")
def var_dim(call: Call, x: Node, axes: Any, unbiased: bool = True, keepdim: bool = False) -> Node:
    """var with the correction as a flag."""
    return var(call, x, axes, correction=int(unbiased), keepdim=keepdim)


@TABLE("std", "std.correction")
def std(call: Call, *args: Any, **named: Any) -> Node:
    """The square root of var."""
    return t.sqrt(var(call, *args, **named))


@TABLE("std.dim")
def std_dim(call: Call, *args: Any, **named: Any) -> Node:
    """The square root of var.dim."""
    return t.sqrt(var_dim(call, *args, **named))


@TABLE("var_mean.correction")
def var_mean(
    call: Call, x: Node, axes: Any = None, *, correction: Any = 1, keepdim: bool = False
) -> tuple[Node, Node]:
    """var and mean."""
    dtype = DTYPES[call.value[0].dtype]
    wide = cast(x, widened(dtype))
    listed = axes_of(axes, len(x.shape))
    variance = _variance(wide, listed, 1 if correction is None else correction, keepdim)
    return cast(variance, dtype), cast(_mean(wide, listed, keepdim), dtype)


@TABLE("amax")
def amax(call: Call, x: Node, axes: Any = (), keepdim: bool = False) -> Node:
    """The largest over axes."""
    return t.reduce_max(x, axes=axes_of(axes, len(x.shape)), keepdims=keepdim)


@TABLE("amin")
def amin(call: Call, x: Node, axes: Any = (), keepdim: bool = False) -> Node:
    """The smallest over axes."""
    return t.reduce_min(x, axes=axes_of(axes, len(x.shape)), keepdims=keepdim)


@TABLE("max.default")
def max_(call: Call, x: Node) -> Node:
    """The largest of all."""
    return amax(call, x)


@TABLE("min.default")
def min_(call: Call, x: Node) -> Node:
    """The smallest of all."""
    return amin(call, x)


@TABLE("max.dim")
def max_dim(call: Call, x: Node, dim: int, keepdim: bool = False) -> tuple[Node, Node]:
    """The largest along an axis, and where."""
    axis = axis_of(dim, len(x.shape))
    where = t.argmax(x, axis=axis, keepdims=keepdim)
    return t.reduce_max(x, axes=(axis,), keepdims=keepdim), where


@TABLE("min.dim")
def min_dim(call: Call, x: Node, dim: int, keepdim: bool = False) -> tuple[Node, Node]:
    """The smallest along an axis, and where."""
    axis = axis_of(dim, len(x.shape))
    where = t.argmax(t.neg(x), axis=axis, keepdims=keepdim)
    return t.reduce_min(x, axes=(axis,), keepdims=keepdim), where


@TABLE("argmax")
def argmax(call: Call, x: Node, dim: int | None = None, keepdim: bool = False) -> Node:
    """Where the largest is."""
    if dim is None:
        x, dim = reshape(x, (product(x.shape),)), 0
    return t.argmax(x, axis=axis_of(dim, len(x.shape)), keepdims=keepdim)


@TABLE("argmin")
def argmin(call: Call, x: Node, dim: int | None = None, keepdim: bool = False) -> Node:
    """Where the smallest is."""
    return argmax(call, t.neg(x), dim, keepdim)


@TABLE("any", "any.dim", "any.dims")
def any_(call: Call, x: Node, axes: Any = None, keepdim: bool = False) -> Node:
    """Whether any is non-zero."""
    return t.reduce_max(cast(x, "bool"), axes=axes_of(axes, len(x.shape)), keepdims=keepdim)


@TABLE("all", "all.dim", "all.dims")
def all_(call: Call, x: Node, axes: Any = None, keepdim: bool = False) -> Node:
    """Whether all are non-zero."""
    return t.reduce_min(cast(x, "bool"), axes=axes_of(axes, len(x.shape)), keepdims=keepdim)


@TABLE("softmax", "_softmax", "_safe_softmax")
def softmax(call: Call, x: Node, dim: int, *_: Any, **__: Any) -> Node:
    """exp(x - max) / sum exp(x - max) along an axis, in the result's dtype."""
    return t.softmax(cast(x, call.dtype), axis=axis_of(dim, len(x.shape)))


@TABLE("logsumexp")
def logsumexp(call: Call, x: Node, axes: Any, keepdim: bool = False) -> Node:
    """log sum exp(x), taken from the largest so that nothing overflows."""
    listed = axes_of(axes, len(x.shape))
    x = cast(x, call.dtype)
    largest = t.reduce_max(x, axes=listed, keepdims=True)
    total = t.reduce_sum(t.exp(t.sub(x, largest)), axes=listed, keepdims=True)
    return reshape(t.add(t.log(total), largest), call.shape)


@TABLE("log_softmax", "_log_softmax")
def log_softmax(call: Call, x: Node, dim: int, *_: Any, **__: Any) -> Node:
    """x - log sum exp(x)."""
    x = cast(x, call.dtype)
    axis = axis_of(dim, len(x.shape))
    shifted = t.sub(x, t.reduce_max(x, axes=(axis,), keepdims=True))
    return t.sub(shifted, t.log(t.reduce_sum(t.exp(shifted), axes=(axis,), keepdims=True)))


@TABLE("cumsum")
def cumsum(call: Call, x: Node, dim: int, **_: Any) -> Node:
    """Running sums along an axis."""
    return t.cumsum(cast(x, call.dtype), axis=axis_of(dim, len(x.shape)))


@TABLE("logcumsumexp")
def logcumsumexp(call: Call, x: Node, dim: int, **_: Any) -> Node:
    """log sum exp(x) so far along an axis."""
    return t.logcumsumexp(cast(x, call.dtype), axis=axis_of(dim, len(x.shape)))


@TABLE("cummax")
def cummax(call: Call, x: Node, dim: int) -> tuple[Node, None]:
    """The largest values so far along an axis; where they are is not told."""
    if not x.tensor.is_float:
        raise Unsupported(f"running extremes of {x.dtype}; floats were wanted")
    return t.cummax(x, axis=axis_of(dim, len(x.shape))), None


@TABLE("cummin")
def cummin(call: Call, x: Node, dim: int) -> tuple[Node, None]:
    """The smallest values so far along an axis; where they are is not told."""
    if not x.tensor.is_float:
        raise Unsupported(f"running extremes of {x.dtype}; floats were wanted")
    return t.neg(t.cummax(t.neg(x), axis=axis_of(dim, len(x.shape)))), None


@TABLE("cumprod")
def cumprod(call: Call, x: Node, dim: int, **_: Any) -> Node:
    """Running products along an axis."""
    return t.cumprod(cast(x, call.dtype), axis=axis_of(dim, len(x.shape)))


@TABLE("diff")
def diff(
    call: Call, x: Node, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None
) -> Node:
    """Each minus the one before along an axis, n times."""
    axis = axis_of(dim, len(x.shape))
    ends = [e for e in (prepend, x, append) if e is not None]
    x = t.concat(*ends, axis=axis) if len(ends) > 1 else x
    for _ in range(n):
        size = x.shape[axis]
        late, early = part(x, axis, 1, size), part(x, axis, 0, size - 1)
        x = t.ne(late, early) if x.dtype == "bool" else t.sub(late, early)
    return x


@TABLE("topk")
def topk(
    call: Call, x: Node, k: Dim, dim: int = -1, largest: bool = True, _: bool = True
) -> tuple[Node, Node]:
    """The k largest in order, and where they were."""
    both = t.topk(x, k=k, axis=axis_of(dim, len(x.shape)), largest=largest)
    return item(both, index=0), item(both, index=1)


@TABLE("sort.default", "sort")
def sort(call: Call, x: Node, dim: int = -1, descending: bool = False) -> tuple[Node, Node]:
    """In order, and where they were."""
    both = t.sort(x, axis=axis_of(dim, len(x.shape)), descending=descending)
    return item(both, index=0), item(both, index=1)


@TABLE("sort.stable")
def sort_stable(
    call: Call, x: Node, stable: bool = True, dim: int = -1, descending: bool = False
) -> tuple[Node, Node]:
    """In order, stable, and where they were."""
    return sort(call, x, dim, descending)


@TABLE("argsort")
def argsort(
    call: Call, x: Node, *args: Any, dim: int = -1, descending: bool = False, stable: bool = True
) -> Node:
    """Where the elements in order were."""
    given = [a for a in args if isinstance(a, int) and not isinstance(a, bool)]
    flags = [a for a in args if isinstance(a, bool)]
    return sort(call, x, given[0] if given else dim, flags[-1] if flags else descending)[1]


@TABLE("linalg_vector_norm", "norm.ScalarOpt_dim", "norm.Scalar")
def vector_norm(
    call: Call, x: Node, order: float = 2, axes: Any = None, keepdim: bool = False, **_: Any
) -> Node:
    """(sum |x|^p)^(1/p) over axes; the largest and the smallest size for infinite p, how many are
    not zero for 0.
    """
    listed = axes_of(axes, len(x.shape))
    x = cast(x, call.dtype)
    if order == 2:
        return t.sqrt(t.reduce_sum(t.mul(x, x), axes=listed, keepdims=keepdim))
    size = t.abs_(x)
    ends = {1: t.reduce_sum, float("inf"): t.reduce_max, float("-inf"): t.reduce_min}
    if order in ends:
        return ends[order](size, axes=listed, keepdims=keepdim)
    if order == 0:
        size = cast(t.ne(x, operand(0, x.dtype)), x.dtype)
        return t.reduce_sum(size, axes=listed, keepdims=keepdim)
    powers = t.pow_(size, operand(float(order), x.dtype))
    total = t.reduce_sum(powers, axes=listed, keepdims=keepdim)
    return t.pow_(total, operand(1.0 / order, x.dtype))


# -- norms


@TABLE("layer_norm")
def layer_norm(
    call: Call, x: Node, shape: Any, w: Any = None, b: Any = None, eps: float = 1e-5, *_: Any
) -> Node:
    """(x - mean) / sqrt(var + eps) * w + b over the last axes."""
    count, lead = len(shape), x.shape[: len(x.shape) - len(shape)]
    flat = x if count == 1 else reshape(x, (*lead, product(shape)))
    weights = [v if count == 1 else reshape(v, (product(shape),)) for v in (w, b) if v is not None]
    if w is None and b is not None:
        result = t.add(m.layer_norm(flat, eps=float(eps)), weights[0])
    else:
        result = m.layer_norm(flat, *weights, eps=float(eps))
    return reshape(result, x.shape)


@TABLE("native_layer_norm")
def native_layer_norm(call: Call, x: Node, shape: Any, w: Any, b: Any, eps: float) -> list[Any]:
    """layer_norm; its mean and rstd, which only training reads, are left out."""
    return [layer_norm(call, x, shape, w, b, eps), None, None]


@TABLE("rms_norm", "_fused_rms_norm")
def rms_norm(call: Call, x: Node, shape: Any, w: Any = None, eps: float | None = None) -> Any:
    """x / sqrt(mean(x^2) + eps) * w over the last axis; eps is the dtype's own where none is
    given.
    """
    if len(shape) != 1:
        raise Unsupported(f"rms_norm over {len(shape)} axes")
    own = {"f32": 2.0**-23, "f64": 2.0**-52, "bf16": 2.0**-7, "f16": 2.0**-10}
    weights = () if w is None else (cast(w, x.dtype),)
    result = m.rms_norm(x, *weights, eps=float(own[x.dtype] if eps is None else eps))
    return [result, None] if isinstance(call.value, (tuple, list)) else result


@TABLE("group_norm")
def group_norm(
    call: Call, x: Node, groups: int, w: Any = None, b: Any = None, eps: float = 1e-5, *_: Any
) -> Node:
    """layer_norm of each group of channels of x[B, C, ...], then a weight and a bias a channel."""
    batch, channels, *rest = x.shape
    flat = reshape(x, (batch, groups, product((channels, *rest)) // groups))
    result = reshape(m.layer_norm(flat, eps=float(eps)), x.shape)
    tail = (1, channels, *(1 for _ in rest))
    result = result if w is None else t.mul(result, reshape(w, tail))
    return result if b is None else t.add(result, reshape(b, tail))


@TABLE("batch_norm")
def batch_norm(
    call: Call,
    x: Node,
    w: Any,
    b: Any,
    mean: Any,
    variance: Any,
    training: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> Node:
    """(x - mean) / sqrt(variance + eps), by kept numbers of each channel of x[B, C, ...]."""
    if training or mean is None:
        raise Unsupported("a batch_norm without kept means mixes its rows")
    tail = (1, x.shape[1], *(1 for _ in x.shape[2:]))
    by = t.rsqrt(t.add(variance, operand(float(eps), variance.dtype)))
    result = t.mul(t.sub(x, reshape(mean, tail)), reshape(by, tail))
    result = result if w is None else t.mul(result, reshape(w, tail))
    return result if b is None else t.add(result, reshape(b, tail))
