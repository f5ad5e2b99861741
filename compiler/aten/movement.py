"""ATen ops that move or make elements: views, slices, joins, paddings, constants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...ir.dims import Dim, as_dim, equal, product
from ...ir.node import Node
from ...ir.ops import tensor as t
from .table import (
    Call,
    Complex,
    Table,
    Unsupported,
    axes_of,
    axis_of,
    broadcast,
    cast,
    is_float,
    operand,
    reshape,
    transpose,
)

TABLE = Table()


def on_parts(build: Callable[..., Any]) -> Callable[..., Any]:
    """A builder for real tensors that takes complex ones too, part by part."""

    def both(call: Call, x: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(x, Complex):
            return Complex(
                build(call, x.real, *args, **kwargs), build(call, x.imag, *args, **kwargs)
            )
        return build(call, x, *args, **kwargs)

    both.__doc__ = build.__doc__
    return both


# -- the same value


@TABLE(
    "alias",
    "clone",
    "contiguous",
    "detach",
    "lift_fresh_copy",
    "lift_fresh",
    "dropout",
    "positive",
    "_conj_physical",
    "resolve_conj",
    "resolve_neg",
    "detach_",
    "native_dropout",
    "feature_dropout",
    "alpha_dropout",
    "feature_alpha_dropout",
)
def same(call: Call, x: Any, *_: Any, **__: Any) -> Any:
    """x itself: copies, and dropout outside training, change no value."""
    return x


# -- shapes


@TABLE(
    "view",
    "_unsafe_view",
    "reshape",
    "squeeze",
    "unsqueeze",
    "flatten",
    "unflatten",
    "_reshape_copy",
    "view_as",
    "reshape_as",
    "atleast_1d",
    "view_copy",
    "squeeze_copy",
    "unsqueeze_copy",
    "ravel",
)
@on_parts
def view(call: Call, x: Node, *_: Any, **__: Any) -> Node:
    """The same elements in the result's shape."""
    return reshape(cast(x, call.dtype), call.shape)


@TABLE("view.dtype")
def view_bits(call: Call, x: Node, *_: Any) -> Node:
    """x itself; the bits of a number as another are none of its values."""
    if x.dtype != call.dtype:
        raise Unsupported(f"the bits of {x.dtype} read as {call.dtype}")
    return x


@TABLE("atleast_1d.Sequence")
def atleast_1d(call: Call, xs: Sequence[Node]) -> list[Node]:
    """Numbers as one element each; other tensors as they are."""
    return [x if x.shape else reshape(x, (1,)) for x in xs]


@TABLE("expand", "broadcast_to", "expand_as", "expand_copy")
@on_parts
def expand(call: Call, x: Node, *_: Any, **__: Any) -> Node:
    """x repeated along its dims of 1."""
    return broadcast(x, call.shape)


@TABLE("broadcast_tensors")
def broadcast_tensors(call: Call, xs: Sequence[Any]) -> list[Any]:
    """Each tensor in their common shape."""
    shape = call.shape_of(call.value[0])
    return [broadcast(x, shape) for x in xs]


@TABLE("permute", "permute_copy")
@on_parts
def permute(call: Call, x: Node, order: Sequence[int]) -> Node:
    """The axes in another order."""
    return transpose(x, [axis_of(a, len(x.shape)) for a in order])


@TABLE("mT")
def matrix_swap(call: Call, x: Any) -> Any:
    """The last two axes exchanged, of however many there are."""
    return swap(call, x, -2, -1)


@TABLE("transpose", "swapaxes", "swapdims", "t", "numpy_T", "transpose_copy")
@on_parts
def swap(call: Call, x: Node, a: int = 0, b: int = 1) -> Node:
    """Two axes exchanged; without arguments, the two of a matrix."""
    rank = len(x.shape)
    if rank < 2:
        return x
    order = list(range(rank))
    a, b = axis_of(a, rank), axis_of(b, rank)
    order[a], order[b] = b, a
    return transpose(x, order)


@TABLE("movedim", "moveaxis")
@on_parts
def movedim(call: Call, x: Node, source: Any, target: Any) -> Node:
    """Axes moved to places, the others kept in order."""
    rank = len(x.shape)
    sources, targets = ([v] if isinstance(v, int) else list(v) for v in (source, target))
    moved = {axis_of(p, rank): axis_of(a, rank) for a, p in zip(sources, targets, strict=True)}
    rest = iter(a for a in range(rank) if a not in moved.values())
    return transpose(x, [moved[i] if i in moved else next(rest) for i in range(rank)])


@TABLE("diagonal", "diagonal_copy")
@on_parts
def diagonal(call: Call, x: Node, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Node:
    """x[.., i, i + offset] along two axes, as a new last axis."""
    first, second = (axis_of(d, len(x.shape)) for d in (dim1, dim2))
    start = offset if offset >= 0 else product((-offset, x.shape[second]))
    return on_diagonal(x, first, second, start, call.shape[-1])


def on_diagonal(x: Node, first: int, second: int, start: Dim, count: Dim) -> Node:
    """So many of the elements [i, i] along two axes, from a place in reading order on, as a new
    last axis.
    """
    rest = [a for a in range(len(x.shape)) if a not in (first, second)]
    rows, columns = x.shape[first], x.shape[second]
    lead = tuple(x.shape[a] for a in rest)
    flat = reshape(transpose(x, [*rest, first, second]), (*lead, product((rows, columns))))
    steps = t.mul(t.iota(size=count, dtype="i64"), operand(columns + 1, "i64"))
    return t.take(flat, t.add(steps, operand(start, "i64")), axis=len(rest))


# -- parts


def part(x: Node, axis: int, start: Dim, stop: Dim, step: int = 1) -> Node:
    """x[start:stop:step] along an axis; itself where that is everything."""
    if start == 0 and step == 1 and equal(stop, x.shape[axis]):
        return x
    return t.slice_(x, axis=axis, start=start, stop=stop, step=step)


def place(index: Any, size: Dim) -> Dim:
    """An index counted from the front; negative ones count from the end, and so does a sum of dims
    that all have a minus before them.
    """
    if isinstance(index, int):
        return size + index if index < 0 else index
    factors = index.as_coefficients_dict().values()
    return as_dim(size + index) if all(f < 0 for f in factors) else index


def _bounds(
    call: Call, size: Dim, length: Dim, start: Any, stop: Any, step: int
) -> tuple[Dim, Dim]:
    """Where a slice of a known length starts and stops."""
    first = 0 if start is None else place(start, size)
    if isinstance(first, int) and isinstance(size, int):
        first = min(max(first, 0), size)
    if step == 1:
        return first, first + length
    past_the_end = stop is None or (isinstance(stop, int) and stop > (1 << 31))
    last = size if past_the_end else place(stop, size)
    if isinstance(last, int) and isinstance(size, int):
        last = min(last, size)
    return first, last


@TABLE("slice", "slice_copy")
@on_parts
def slice_(
    call: Call, x: Node, axis: int = 0, start: Any = None, stop: Any = None, step: int = 1
) -> Node:
    """x[start:stop:step] along an axis, its length as traced."""
    axis = axis_of(axis, len(x.shape))
    first, last = _bounds(call, x.shape[axis], call.shape[axis], start, stop, step)
    return part(x, axis, first, last, step)


@TABLE("narrow")
@on_parts
def narrow(call: Call, x: Node, axis: int, start: Any, length: Any) -> Node:
    """So many from start along an axis."""
    axis = axis_of(axis, len(x.shape))
    first = place(start, x.shape[axis])
    return part(x, axis, first, first + length)


@TABLE("select", "select_copy")
@on_parts
def select(call: Call, x: Node, axis: int, index: Any) -> Node:
    """One place along an axis, which goes."""
    axis = axis_of(axis, len(x.shape))
    first = place(index, x.shape[axis])
    return reshape(part(x, axis, first, first + 1), call.shape)


def _pieces(call: Call, x: Any, axis: int) -> list[Any]:
    """x cut along an axis into pieces of the traced shapes."""
    if isinstance(x, Complex):
        halves = [_pieces(call, half, axis) for half in x]
        return [Complex(*both) for both in zip(*halves, strict=True)]
    pieces, at = [], 0
    for value in call.value:
        size = call.shape_of(value)[axis]
        pieces.append(part(x, axis, at, at + size))
        at = at + size
    return pieces


def _rank(x: Any) -> int:
    return len((x.real if isinstance(x, Complex) else x).shape)


@TABLE("split", "split_with_sizes", "chunk", "tensor_split", "split_copy", "split_with_sizes_copy")
def split(call: Call, x: Any, sizes: Any, dim: int = 0) -> list[Any]:
    """Consecutive pieces along an axis."""
    return _pieces(call, x, axis_of(dim, _rank(x)))


@TABLE("unbind", "unbind_copy")
def unbind(call: Call, x: Any, dim: int = 0) -> list[Any]:
    """Every place along an axis, which goes."""
    if isinstance(x, Complex):
        return [Complex(*both) for both in zip(*(unbind(call, h, dim) for h in x), strict=True)]
    axis = axis_of(dim, len(x.shape))
    shapes = [call.shape_of(v) for v in call.value]
    return [reshape(part(x, axis, i, i + 1), shape) for i, shape in enumerate(shapes)]


@TABLE("flip")
@on_parts
def flip(call: Call, x: Node, axes: Sequence[int]) -> Node:
    """In reverse along axes."""
    return t.flip(x, axes=axes_of(axes, len(x.shape)))


@TABLE("roll")
def roll(call: Call, x: Node, shifts: Any, dims: Any = ()) -> Node:
    """Elements moved along axes, those pushed out coming in at the other end."""
    shifts, dims = ([v] if isinstance(v, int) else list(v) for v in (shifts, dims))
    if not dims:
        raise Unsupported("roll of a flattened tensor")
    for shift, dim in zip(shifts, dims, strict=True):
        axis = axis_of(dim, len(x.shape))
        size = x.shape[axis]
        if shift == 0:
            continue
        if shift > 1 and not isinstance(size, int):
            x = _rolled(x, axis, shift)
            continue
        at = place(-shift, size) if shift > 0 else -shift
        x = t.concat(part(x, axis, at, size), part(x, axis, 0, at), axis=axis)
    return x


def _rolled(x: Node, axis: int, by: int) -> Node:
    """roll of an axis that may be shorter than what it is moved by: what is moved, and where that
    is from before the first, the element of that place from the end.
    """
    size = x.shape[axis]
    before, none = (tuple(n if i == axis else 0 for i in range(len(x.shape))) for n in (by, 0))
    moved = part(t.pad(x, before=before, after=none, value=0.0), axis, 0, size)
    places = t.iota(size=size, dtype="i64")
    source = t.mod(t.sub(places, operand(by, "i64")), operand(size, "i64"))
    is_inside = t.ge(places, operand(by, "i64"))
    shape = tuple(size if i == axis else 1 for i in range(len(x.shape)))
    return t.where(reshape(is_inside, shape), moved, t.take(x, source, axis=axis))


# -- joins


@TABLE("cat", "concat", "concatenate")
def cat(call: Call, xs: Sequence[Any], dim: int = 0) -> Any:
    """One after another, in one dtype; torch's empty [0] tensors join anything."""
    if any(isinstance(x, Complex) for x in xs):
        return Complex(cat(call, [x.real for x in xs], dim), cat(call, [x.imag for x in xs], dim))
    rank = len(call.shape)
    kept = [cast(x, call.dtype) for x in xs if len(x.shape) == rank]
    axis = axis_of(dim, rank)
    kept = [x for x in kept if x.shape[axis] != 0] or kept[:1]
    return kept[0] if len(kept) == 1 else t.concat(*kept, axis=axis)


@TABLE("stack")
def stack(call: Call, xs: Sequence[Any], dim: int = 0) -> Any:
    """Side by side along a new axis."""
    if any(isinstance(x, Complex) for x in xs):
        return Complex(
            stack(call, [x.real for x in xs], dim), stack(call, [x.imag for x in xs], dim)
        )
    axis = axis_of(dim, len(call.shape))
    shape = tuple(1 if i == axis else d for i, d in enumerate(call.shape))
    parts = [reshape(cast(x, call.dtype), shape) for x in xs]
    return parts[0] if len(parts) == 1 else t.concat(*parts, axis=axis)


@TABLE("repeat", "tile")
@on_parts
def repeat(call: Call, x: Node, times: Sequence[Any]) -> Node:
    """The whole repeated along each axis."""
    padded = (1,) * (len(times) - len(x.shape)) + tuple(x.shape)
    inner: list[Dim] = []
    outer: list[Dim] = []
    for count, size in zip((1,) * (len(padded) - len(times)) + tuple(times), padded, strict=True):
        inner += [1, size]
        outer += [count, size]
    return reshape(broadcast(reshape(x, inner), outer), call.shape)


@TABLE("repeat_interleave.self_int")
@on_parts
def repeat_interleave(call: Call, x: Node, times: Any, dim: int | None = None, **_: Any) -> Node:
    """Each element repeated along an axis."""
    if dim is None:
        x, dim = reshape(x, (product(x.shape),)), 0
    axis = axis_of(dim, len(x.shape))
    shape = (*x.shape[: axis + 1], 1, *x.shape[axis + 1 :])
    wide = (*x.shape[: axis + 1], times, *x.shape[axis + 1 :])
    return reshape(broadcast(reshape(x, shape), wide), call.shape)


@TABLE("pad", "constant_pad_nd")
def pad(call: Call, x: Node, amounts: Sequence[Any], *rest: Any, **named: Any) -> Node:
    """Constant values around x; negative amounts cut. Amounts go from the last axis forward, before
    and after.
    """
    words = [r for r in rest if isinstance(r, str)]
    mode = named.get("mode", words[0] if words else "constant")
    if mode != "constant":
        raise Unsupported(f"padding mode {mode!r}")
    numbers = [r for r in rest if isinstance(r, (int, float)) and not isinstance(r, str)]
    value = named.get("value", numbers[0] if numbers else 0) or 0
    rank = len(x.shape)
    before: list[Any] = [0] * rank
    after: list[Any] = [0] * rank
    for i, (low, high) in enumerate(zip(amounts[::2], amounts[1::2], strict=True)):
        before[rank - 1 - i], after[rank - 1 - i] = low, high
    return _padded(x, before, after, value)


def _padded(x: Node, before: list[Any], after: list[Any], value: float) -> Node:
    for axis, (low, high) in enumerate(zip(before, after, strict=True)):
        cut = max(0, -low) if isinstance(low, int) else 0
        tail = max(0, -high) if isinstance(high, int) else 0
        x = part(x, axis, cut, x.shape[axis] - tail)
    low = tuple(max(0, b) if isinstance(b, int) else b for b in before)
    high = tuple(max(0, a) if isinstance(a, int) else a for a in after)
    if not any(b != 0 for b in (*low, *high)):
        return x
    typed = float(value) if is_float(x.dtype) else bool(value) if x.dtype == "bool" else int(value)
    return t.pad(x, before=low, after=high, value=typed)


# -- writes into a copy


@TABLE("slice_scatter")
def slice_scatter(
    call: Call,
    x: Node,
    source: Node,
    dim: int = 0,
    start: Any = None,
    end: Any = None,
    step: int = 1,
) -> Node:
    """x with x[start:end:step] replaced."""
    axis = axis_of(dim, len(x.shape))
    source = cast(source, x.dtype)
    first = 0 if start is None else place(start, x.shape[axis])
    length = source.shape[axis]
    if step != 1:
        return _strided_scatter(x, source, axis, first, step)
    return replaced(x, source, axis, first, first + length)


def replaced(x: Node, source: Node, axis: int, first: Dim, last: Dim) -> Node:
    """x with [first, last) along an axis replaced by source."""
    before = [] if first == 0 else _written(x, axis, 0, first)
    after = [] if equal(last, x.shape[axis]) else _written(x, axis, last, x.shape[axis])
    parts = (*before, source, *after)
    return parts[0] if len(parts) == 1 else t.concat(*parts, axis=axis)


def _written(x: Node, axis: int, first: Dim, last: Dim) -> list[Node]:
    """x[first:last] as the pieces that x was put together from: a loop that writes row after row
    leaves each row as it was written.
    """
    sizes = [i.shape[axis] for i in x.inputs] if x.op is t.concat and x["axis"] == axis else []
    ends = [
        sum(sizes[: n + 1]) for n in range(len(sizes)) if all(isinstance(d, int) for d in sizes)
    ]
    if not ends or not isinstance(first, int) or not isinstance(last, int):
        return [part(x, axis, first, last)]
    found: list[Node] = []
    for piece, end, size in zip(x.inputs, ends, sizes, strict=True):
        low, high = max(first - (end - size), 0), min(last - (end - size), size)
        if low < high:
            found.append(part(piece, axis, low, high))
    return found


def _strided_scatter(x: Node, source: Node, axis: int, first: Dim, step: int) -> Node:
    places = t.iota(size=source.shape[axis], dtype="i64")
    places = t.add(t.mul(places, operand(step, "i64")), operand(first, "i64"))
    shape = tuple(d if i == axis else 1 for i, d in enumerate(source.shape))
    index = broadcast(reshape(places, shape), source.shape)
    return t.scatter(x, index, source, axis=axis)


@TABLE("select_scatter")
def select_scatter(call: Call, x: Node, source: Node, dim: int, index: Any) -> Node:
    """x with one place along an axis replaced."""
    axis = axis_of(dim, len(x.shape))
    first = place(index, x.shape[axis])
    shape = tuple(1 if i == axis else d for i, d in enumerate(x.shape))
    return replaced(x, reshape(cast(source, x.dtype), shape), axis, first, first + 1)


@TABLE("copy", "copy_")
def copy(call: Call, x: Any, source: Any, *_: Any) -> Any:
    """The source in x's shape and dtype."""
    if isinstance(source, Complex):
        return Complex(*(broadcast(cast(s, call.dtype), call.shape) for s in source))
    return broadcast(cast(source, call.dtype), call.shape)


@TABLE("unfold")
def unfold(call: Call, x: Node, dim: int, size: int, step: int) -> Node:
    """Windows of a size, `step` apart, along an axis; the place in the window is a new last
    axis.
    """
    axis = axis_of(dim, len(x.shape))
    count = call.shape[axis]
    starts = t.mul(t.iota(size=count, dtype="i64"), operand(step, "i64"))
    index = t.add(reshape(starts, (count, 1)), reshape(t.iota(size=size, dtype="i64"), (1, size)))
    windows = t.take(x, index, axis=axis)
    rank = len(x.shape)
    order = [*(i for i in range(rank + 1) if i != axis + 1), axis + 1]
    return transpose(windows, order)
