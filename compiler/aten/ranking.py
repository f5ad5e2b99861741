"""ATen ops of order: places among sorted numbers, the k-th of a row, means of windows."""

from __future__ import annotations

from typing import Any

from ...ir.dims import Dim, equal
from ...ir.node import Node, item
from ...ir.ops import tensor as t
from .table import Call, Table, Unsupported, axis_of, cast, operand, reshape

TABLE = Table()


@TABLE("bucketize.Tensor")
def bucketize(
    call: Call, x: Node, bounds: Node, *, out_int32: bool = False, right: bool = False
) -> Node:
    """How many of the sorted bounds [N] are below x, or no more than it where `right`."""
    return _counted(call, reshape(x, (*x.shape, 1)), bounds, right)


def _counted(call: Call, x: Node, bounds: Node, right: bool) -> Node:
    x, bounds = (cast(v, call.common()) for v in (x, bounds))
    passed = t.le(bounds, x) if right else t.lt(bounds, x)
    return t.reduce_sum(cast(passed, call.dtype), axes=(len(passed.shape) - 1,))


@TABLE("searchsorted.Tensor")
def searchsorted(
    call: Call,
    bounds: Node,
    x: Node,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Any = None,
) -> Node:
    """bucketize by bounds [..., N] of each row of x[..., V], or by the same [N] for all."""
    if sorter is not None:
        raise Unsupported("searchsorted with a sorter")
    if len(bounds.shape) > 1:
        bounds = reshape(bounds, (*bounds.shape[:-1], 1, bounds.shape[-1]))
    return _counted(call, reshape(x, (*x.shape, 1)), bounds, right or side == "right")


@TABLE("kthvalue")
def kthvalue(
    call: Call, x: Node, k: int, dim: int = -1, keepdim: bool = False
) -> tuple[Node, Node]:
    """The k-th smallest along an axis, and where."""
    axis = axis_of(dim, len(x.shape))
    ordered = t.sort(x, axis=axis, descending=False)
    shape = call.shape_of(call.value[0])
    values, places = (
        reshape(t.slice_(item(ordered, index=i), axis=axis, start=k - 1, stop=k), shape)
        for i in (0, 1)
    )
    return values, places


@TABLE("median.dim")
def median(call: Call, x: Node, dim: int, keepdim: bool = False) -> tuple[Node, Node]:
    """The lower of those in the middle along an axis, and where."""
    size = x.shape[axis_of(dim, len(x.shape))]
    if not isinstance(size, int):
        raise Unsupported(f"the median of {size} numbers")
    return kthvalue(call, x, (size + 1) // 2, dim, keepdim)


# -- windows


def _windows(x: Node, axis: int, count: Dim, size: int, step: int) -> list[Node]:
    """The first of every window along an axis, the second of each, and so on."""
    last = step * (count - 1) + 1
    return [t.slice_(x, axis=axis, start=at, stop=at + last, step=step) for at in range(size)]


@TABLE("avg_pool1d")
def avg_pool1d(
    call: Call,
    x: Node,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Node:
    """Means of windows along the last axis; zeros around it count."""
    size, step, around = _window(kernel, stride, padding)
    if ceil_mode or (around and not count_include_pad):
        raise Unsupported("avg_pool1d with ceil_mode, or without the zeros around it")
    axis, count = len(x.shape) - 1, call.shape[-1]
    ends = tuple(around if i == axis else 0 for i in range(len(x.shape)))
    x = t.pad(x, before=ends, after=ends, value=0.0) if around else x
    if step == 1 and len(x.shape) == 3 and isinstance(x.shape[1], int):
        taps = t.broadcast(operand(1 / size, x.dtype), shape=(x.shape[1], 1, size))
        made = t.conv1d(x, taps, groups=x.shape[1])
        assert equal(made.shape[-1], count), made
        return made
    total, *rest = _windows(x, axis, count, size, step)
    for part in rest:
        total = t.add(total, part)
    return t.mul(total, operand(1 / size, x.dtype))


def _window(kernel: Any, stride: Any, padding: Any) -> tuple[int, int, int]:
    size, around = (v if isinstance(v, int) else v[0] for v in (kernel, padding))
    step = stride if isinstance(stride, int) else (stride[0] if stride else size)
    return size, step, around
