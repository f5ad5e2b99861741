"""Tensor ops: leaves, reductions, movement, gather and scatter, matmul; the elementwise ones too.

Axes are never negative.
"""

from __future__ import annotations

from ..dims import (
    Dim,
    Shape,
    as_dim,
    dim_text,
    equal,
    equal_shapes,
    exact_quotient,
    product,
    shape_text,
)
from ..errors import IRError
from ..node import Node, op
from ..types import TensorType, TupleType
from .elementwise import *  # noqa: F403 (this module is the door to both files)
from .elementwise import broadcast_shapes, float_tensor, same_dtype


def _axis(t: TensorType, axis: int) -> int:
    if not 0 <= axis < t.rank:
        raise IRError(f"axis {axis} of {t}")
    return axis


def _fits(part: Dim, whole: Dim) -> bool:
    """Whether part <= whole, as far as that is known."""
    room = as_dim(whole - part)
    return room >= 0 if isinstance(room, int) else not room.is_negative


# -- leaves


@op("leaf")
def constant(*, value: float | int | bool, dtype: str) -> TensorType:
    """A scalar, shape ()."""
    return TensorType(dtype, ())


@op("leaf")
def iota(*, size: Dim, dtype: str) -> TensorType:
    """0, 1, ..., size - 1."""
    return TensorType(dtype, (size,))


@op("leaf")
def dim_value(*, dim: Dim, dtype: str) -> TensorType:
    """The value of a dim as a scalar, shape ()."""
    return TensorType(dtype, ())


def scalar(value: float | int | bool, dtype: str) -> Node:
    """A constant: constant(value=value, dtype=dtype)."""
    return constant(value=value, dtype=dtype)


# -- reductions and scans along axes


def _reduced(x: TensorType, axes: tuple[int, ...], keepdims: bool) -> TensorType:
    if len({_axis(x, axis) for axis in axes}) != len(axes):
        raise IRError(f"an axis twice in {axes}")
    kept = ((1 if i in axes else d) for i, d in enumerate(x.shape) if keepdims or i not in axes)
    return x.with_shape(tuple(kept))


@op("reduction")
def reduce_sum(x: TensorType, *, axes: tuple[int, ...], keepdims: bool = False) -> TensorType:
    """The sum over axes; bfloat16 and float16 accumulate in float32."""
    return _reduced(x, axes, keepdims)


@op("reduction")
def reduce_max(x: TensorType, *, axes: tuple[int, ...], keepdims: bool = False) -> TensorType:
    """The largest over axes; for booleans, any."""
    return _reduced(x, axes, keepdims)


@op("reduction")
def reduce_min(x: TensorType, *, axes: tuple[int, ...], keepdims: bool = False) -> TensorType:
    """The smallest over axes; for booleans, all."""
    return _reduced(x, axes, keepdims)


@op("reduction")
def reduce_prod(x: TensorType, *, axes: tuple[int, ...], keepdims: bool = False) -> TensorType:
    """The product over axes."""
    return _reduced(x, axes, keepdims)


@op("reduction")
def argmax(
    x: TensorType, *, axis: int, keepdims: bool = False, checked: bool = False
) -> TensorType:
    """Where the largest is along an axis, the first of equals; i64.

    `checked`: -1 where there is a NaN, or where the largest is infinite.
    """
    return _reduced(x, (axis,), keepdims).with_dtype("i64")


@op("axis")
def softmax(x: TensorType, *, axis: int) -> TensorType:
    """exp(x - max) / sum exp(x - max) along an axis; the mathematics in float32 or wider."""
    _axis(x, axis)
    return float_tensor(x)


@op("axis")
def cumsum(x: TensorType, *, axis: int) -> TensorType:
    """Running sums along an axis."""
    _axis(x, axis)
    return x


@op("axis")
def cumprod(x: TensorType, *, axis: int) -> TensorType:
    """Running products along an axis."""
    _axis(x, axis)
    return x


@op("axis")
def cummax(x: TensorType, *, axis: int) -> TensorType:
    """The largest so far along an axis."""
    _axis(x, axis)
    return x


@op("axis")
def logcumsumexp(x: TensorType, *, axis: int) -> TensorType:
    """log sum exp(x) so far along an axis, each from the largest so far."""
    _axis(x, axis)
    return float_tensor(x)


@op("axis")
def topk(x: TensorType, *, k: Dim, axis: int, largest: bool = True) -> TupleType:
    """The k largest (or smallest) along an axis in order, and where they were; i64."""
    if not k >= 0 or not _fits(k, x.shape[_axis(x, axis)]):
        raise IRError(f"the {k} {'largest' if largest else 'smallest'} of axis {axis} of {x}")
    shape = tuple(k if i == axis else d for i, d in enumerate(x.shape))
    return TupleType((x.with_shape(shape), TensorType("i64", shape)))


@op("axis")
def sort(x: TensorType, *, axis: int, descending: bool = False) -> TupleType:
    """The values in order along an axis, stable, and where they were; i64."""
    _axis(x, axis)
    return TupleType((x, x.with_dtype("i64")))


# -- movement


@op("movement")
def reshape(x: TensorType, *, shape: Shape) -> TensorType:
    """The same elements in row-major order, in another shape of the same size."""
    if not equal(product(x.shape), product(shape)):
        raise IRError(f"{x} does not reshape to {shape_text(shape)}")
    return x.with_shape(shape)


@op("movement")
def transpose(x: TensorType, *, permutation: tuple[int, ...]) -> TensorType:
    """Axis i of the result is axis permutation[i] of x."""
    if sorted(permutation) != list(range(x.rank)):
        raise IRError(f"{permutation} is no permutation of the axes of {x}")
    return x.with_shape(tuple(x.shape[p] for p in permutation))


@op("movement")
def broadcast(x: TensorType, *, shape: Shape) -> TensorType:
    """x repeated along its dims of 1, and along new leading axes."""
    if len(shape) < x.rank:
        raise IRError(f"{x} does not broadcast to {shape_text(shape)}")
    tail = shape[len(shape) - x.rank :]
    if any(d != 1 and not equal(d, s) for d, s in zip(x.shape, tail, strict=True)):
        raise IRError(f"{x} does not broadcast to {shape_text(shape)}")
    return x.with_shape(shape)


@op("movement")
def slice_(x: TensorType, *, axis: int, start: Dim, stop: Dim, step: int = 1) -> TensorType:
    """Every step-th element of [start, stop) along an axis; 0 <= start <= stop <= size."""
    if step < 1:
        raise IRError(f"a step is 1 or more, not {step}")
    size = x.shape[_axis(x, axis)]
    if not (_fits(0, start) and _fits(start, stop) and _fits(stop, size)):
        raise IRError(f"slice [{dim_text(start)}, {dim_text(stop)}) of axis {axis} of {x}")
    length = stop - start if step == 1 else (stop - start + step - 1) // step
    return x.with_shape(tuple(length if i == axis else d for i, d in enumerate(x.shape)))


@op("movement")
def concat(*xs: TensorType, axis: int) -> TensorType:
    """The inputs one after another along an axis."""
    if not xs:
        raise IRError("nothing to join")
    _axis(xs[0], axis)
    same_dtype(*xs)
    rest = _without(xs[0], axis)
    for x in xs:
        if x.rank != xs[0].rank or not equal_shapes(_without(x, axis), rest):
            raise IRError(f"{x} and {xs[0]} do not join along axis {axis}")
    total = sum((x.shape[axis] for x in xs[1:]), start=xs[0].shape[axis])
    return xs[0].with_shape((*xs[0].shape[:axis], total, *xs[0].shape[axis + 1 :]))


def _without(x: TensorType, axis: int) -> Shape:
    return (*x.shape[:axis], *x.shape[axis + 1 :])


@op("movement")
def pad(
    x: TensorType, *, before: tuple[Dim, ...], after: tuple[Dim, ...], value: float | int | bool = 0
) -> TensorType:
    """x with constant values around it, so many before and after along each axis.

    A negative count cuts off that many.
    """
    if len(before) != x.rank or len(after) != x.rank:
        raise IRError(f"{x} needs {x.rank} paddings before and after, not {before} and {after}")
    return x.with_shape(tuple(b + d + a for b, d, a in zip(before, x.shape, after, strict=True)))


@op("movement")
def flip(x: TensorType, *, axes: tuple[int, ...]) -> TensorType:
    """x in reverse along axes."""
    for axis in axes:
        _axis(x, axis)
    return x


# -- gather and scatter


def _index(t: TensorType) -> TensorType:
    if t.dtype not in ("i32", "i64"):
        raise IRError(f"an index is i32 or i64, not {t}")
    return t


@op("index")
def take(x: TensorType, index: TensorType, *, axis: int) -> TensorType:
    """x[..., index, ...]: the index's shape stands in the place of an axis; 0 <= index < size."""
    _axis(x, axis)
    return x.with_shape((*x.shape[:axis], *_index(index).shape, *x.shape[axis + 1 :]))


@op("index")
def take_along(x: TensorType, index: TensorType, *, axis: int) -> TensorType:
    """result[i][j] = x[i][index[i][j]] for axis 1 (torch.gather)."""
    _axis(x, axis)
    if _index(index).rank != x.rank:
        raise IRError(f"the ranks of {x} and {index} differ")
    return x.with_shape(index.shape)


@op("index")
def scatter(
    x: TensorType, index: TensorType, source: TensorType, *, axis: int, reduce: str = "set"
) -> TensorType:
    """x with x[i][index[i][j]] set to source[i][j] for axis 1 (torch.scatter).

    With reduce="add" it is increased by source[i][j], as often as an index stands there.
    """
    _axis(x, axis)
    same_dtype(x, source)
    if reduce not in ("set", "add"):
        raise IRError(f"reduce is 'set' or 'add', not {reduce!r}")
    if _index(index).rank != x.rank or source.rank != x.rank:
        raise IRError(f"the ranks of {x}, {index} and {source} differ")
    return x


# -- contraction


@op("contraction")
def matmul(x: TensorType, y: TensorType) -> TensorType:
    """x @ y over the last two axes; leading axes broadcast.

    Accumulates in float32 or wider, integers in i32 or wider.
    """
    dtype = same_dtype(x, y)
    if x.rank < 2 or y.rank < 2:
        raise IRError(f"matrices were wanted, not {x} @ {y}")
    if not equal(x.shape[-1], y.shape[-2]):
        raise IRError(f"inner dims differ, {x} @ {y}")
    batch = broadcast_shapes(x.shape[:-2], y.shape[:-2])
    return TensorType(dtype, (*batch, x.shape[-2], y.shape[-1]))


@op("contraction")
def conv1d(
    x: TensorType,
    w: TensorType,
    *bias: TensorType,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> TensorType:
    """Cross-correlation of x[B, C, L] with w[O, C / groups, K] (torch.nn.functional.conv1d).

    bias[O] is added, and `padding` zeros stand at either end.
    """
    dtype = same_dtype(x, w, *bias)
    inner = product((w.shape[1], groups)) if w.rank == 3 else 0
    if x.rank != 3 or not equal(x.shape[1], inner) or exact_quotient(w.shape[0], groups) is None:
        raise IRError(f"x[B, C, L], w[O, C/groups, K] were wanted, not {x}, {w}, {groups} groups")
    if len(bias) > 1 or any(not equal_shapes(b.shape, w.shape[:1]) for b in bias):
        raise IRError(f"one bias[O] at most was wanted for {w}, not {', '.join(map(str, bias))}")
    span = x.shape[2] + 2 * padding - dilation * (w.shape[2] - 1) - 1
    if not _fits(0, span):
        raise IRError(f"{w}, dilated {dilation} times, is longer than {x} padded by {padding}")
    return TensorType(dtype, (x.shape[0], w.shape[0], span // stride + 1))
