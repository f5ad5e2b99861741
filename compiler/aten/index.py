"""ATen ops that gather and scatter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...ir.dims import Dim, equal, product
from ...ir.node import Node
from ...ir.ops import tensor as t
from ...ir.ops.tensor import broadcast_shapes
from .movement import on_parts
from .table import (
    Call,
    Table,
    Unsupported,
    axis_of,
    broadcast,
    cast,
    operand,
    reshape,
    transpose,
)

TABLE = Table()


def is_non_negative(x: Node) -> bool:
    """Whether a node of integers is plainly never negative: places, counts, and what is made of
    them by moving and adding.
    """
    name = x.op.name
    if name in ("iota", "argmax", "dim_value"):
        return True
    if name == "constant":
        return x["value"] >= 0
    if name == "item":
        return x["index"] == 1 and x.inputs[0].op.name in ("topk", "sort")
    if x.op.has("movement") or name == "cast":
        return all(is_non_negative(i) for i in x.inputs) and x.inputs[0].dtype[0] != "f"
    if name in ("add", "mul", "maximum", "minimum", "floordiv"):
        return all(is_non_negative(i) for i in x.inputs)
    return name == "take" and is_non_negative(x.inputs[0])


def from_the_front(index: Node, size: Dim) -> Node:
    """An index whose negative values count from the end, with those replaced."""
    index = cast(index, "i64") if index.dtype not in ("i32", "i64") else index
    if is_non_negative(index):
        return index
    wrapped = t.add(index, operand(size, index.dtype))
    return t.where(t.lt(index, operand(0, index.dtype)), wrapped, index)


@TABLE("embedding")
def embedding(call: Call, table: Node, index: Node, *_: Any, **__: Any) -> Node:
    """Rows of a table."""
    return t.take(table, index, axis=0)


@TABLE("index_select")
@on_parts
def index_select(call: Call, x: Node, dim: int, index: Node) -> Node:
    """Places along an axis."""
    return t.take(
        x,
        from_the_front(index, x.shape[axis_of(dim, len(x.shape))]),
        axis=axis_of(dim, len(x.shape)),
    )


@TABLE("gather")
def gather(call: Call, x: Node, dim: int, index: Node, **_: Any) -> Node:
    """result[i][j] = x[i][index[i][j]]."""
    return t.take_along(x, index, axis=axis_of(dim, len(x.shape)))


@TABLE("take_along_dim")
def take_along_dim(call: Call, x: Node, index: Node, dim: int) -> Node:
    """gather with the other axes broadcast."""
    axis = axis_of(dim, len(x.shape))
    shape = [
        b if i == axis else a for i, (a, b) in enumerate(zip(x.shape, index.shape, strict=True))
    ]
    other = broadcast_shapes(
        tuple(1 if i == axis else d for i, d in enumerate(x.shape)),
        tuple(1 if i == axis else d for i, d in enumerate(index.shape)),
    )
    whole = [x.shape[i] if i == axis else d for i, d in enumerate(other)]
    wanted = [shape[i] if i == axis else d for i, d in enumerate(other)]
    return t.take_along(broadcast(x, whole), broadcast(index, wanted), axis=axis)


@TABLE("index", "_unsafe_index")
@on_parts
def index(call: Call, x: Node, indices: Sequence[Any]) -> Node:
    """x[i, j, ...] by tensors; None keeps an axis whole (numpy's advanced indexing)."""
    given = [(axis, i) for axis, i in enumerate(indices) if i is not None]
    if any(i.dtype in ("bool", "u8") for _, i in given):
        raise Unsupported("indexing by a mask: the result's shape depends on the data")
    mesh = _open_mesh(x, given)
    if mesh is not None:
        return reshape(mesh, call.shape)
    if len(given) == 1:
        axis, places = given[0]
        return t.take(x, from_the_front(places, x.shape[axis]), axis=axis)
    axes = [axis for axis, _ in given]
    shape = broadcast_shapes(*(i.shape for _, i in given))
    front, places = _flat_places(x, given)
    taken = t.take(front, broadcast(places, shape), axis=0)
    first = axes[0] if axes == list(range(axes[0], axes[-1] + 1)) else 0
    rank, width = len(taken.shape), len(shape)
    # The indexed axes' place is where they stood, if they stood together, else the front.
    order = [*range(width, width + first), *range(width), *range(width + first, rank)]
    return transpose(taken, order)


def _flat_places(x: Node, given: Sequence[tuple[int, Node]]) -> tuple[Node, Node]:
    """x with the indexed axes merged in front, and one index into them."""
    axes = [axis for axis, _ in given]
    rest = [a for a in range(len(x.shape)) if a not in axes]
    front = transpose(x, [*axes, *rest])
    sizes = [x.shape[a] for a in axes]
    front = reshape(front, (product(sizes), *(x.shape[a] for a in rest)))
    places: Node | None = None
    for size, (_, i) in zip(sizes, given, strict=True):
        i = cast(from_the_front(i, size), "i64")
        places = i if places is None else t.add(t.mul(places, operand(size, "i64")), i)
    assert places is not None
    return front, places


def _open_mesh(x: Node, given: Sequence[tuple[int, Node]]) -> Node | None:
    """x itself, where every index is the whole of 0, 1, ... along an axis of its own, in the axes'
    order.
    """
    if len(given) != len(x.shape) or not given:
        return None
    at = []
    for axis, i in given:
        wide = [n for n, d in enumerate(i.shape) if d != 1]
        if i.op.name == "reshape":
            i = i.inputs[0]
        if i.op.name != "iota" or not equal(i["size"], x.shape[axis]):
            return None
        rank = len(given[0][1].shape)
        if len(given[axis][1].shape) != rank or len(wide) > 1:
            return None
        at.append(wide[0] if wide else None)
    placed = [a for a in at if a is not None]
    return x if placed == sorted(set(placed)) else None


@TABLE("index_put", "_unsafe_index_put", "index_put_")
def index_put(
    call: Call, x: Node, indices: Sequence[Any], values: Node, accumulate: bool = False
) -> Node:
    """x with x[i, j, ...] set to, or increased by, values."""
    given = [(axis, i) for axis, i in enumerate(indices) if i is not None]
    values = cast(values, x.dtype)
    if any(i.dtype == "bool" for _, i in given):
        return _put_by_mask(x, given, values, accumulate)
    axes = [axis for axis, _ in given]
    rest = [axis for axis in range(len(x.shape)) if axis not in axes]
    shape = broadcast_shapes(*(i.shape for _, i in given))
    front, places = _flat_places(x, given)
    count, tail = product(shape), front.shape[1:]
    source = reshape(_values_in_front(x, values, axes, shape), (count, *tail))
    rows = reshape(broadcast(places, shape), (count, *(1 for _ in tail)))
    rows = broadcast(rows, (count, *tail))
    put = t.scatter(front, rows, source, axis=0, reduce="add" if accumulate else "set")
    order = [*axes, *rest]
    put = reshape(put, tuple(x.shape[axis] for axis in order))
    return transpose(put, [order.index(axis) for axis in range(len(order))])


def _values_in_front(x: Node, values: Node, axes: Sequence[int], shape: Sequence[Dim]) -> Node:
    """What is put at places of `shape` along axes of x, the places' axes in front of the others:
    they stand where the indexed axes stood, if those stood together, else in front.
    """
    rest = [d for axis, d in enumerate(x.shape) if axis not in axes]
    first = axes[0] if list(axes) == list(range(axes[0], axes[-1] + 1)) else 0
    wide = broadcast(values, (*rest[:first], *shape, *rest[first:]))
    at, rank = range(first, first + len(shape)), len(wide.shape)
    return transpose(wide, [*at, *(i for i in range(rank) if i not in at)])


def _put_by_mask(
    x: Node, given: Sequence[tuple[int, Node]], values: Node, accumulate: bool
) -> Node:
    (axis, mask), *more = given
    if more or axis or accumulate or product(values.shape) != 1:
        raise Unsupported("index_put by a mask of other than one value")
    mask = reshape(mask, (*mask.shape, *(1 for _ in x.shape[len(mask.shape) :])))
    return t.where(broadcast(mask, x.shape), reshape(values, ()), x)


def _scattered(call: Call, x: Node, dim: int, places: Node, source: Any, reduce: str) -> Node:
    axis = axis_of(dim, len(x.shape))
    if isinstance(source, Node):
        source = cast(source, x.dtype)
        for i, (wanted, given) in enumerate(zip(places.shape, source.shape, strict=True)):
            if not equal(wanted, given):
                source = t.slice_(source, axis=i, start=0, stop=wanted)
    else:
        source = broadcast(operand(source, x.dtype), places.shape)
    return t.scatter(x, places, source, axis=axis, reduce=reduce)


@TABLE("scatter.src", "scatter.value")
def scatter(call: Call, x: Node, dim: int, places: Node, source: Any) -> Node:
    """x with x[i][index[i][j]] set to source[i][j]."""
    return _scattered(call, x, dim, places, source, "set")


@TABLE("scatter_add")
def scatter_add(call: Call, x: Node, dim: int, places: Node, source: Any) -> Node:
    """x with x[i][index[i][j]] increased by source[i][j]."""
    return _scattered(call, x, dim, places, source, "add")


@TABLE("index_add")
def index_add(call: Call, x: Node, dim: int, places: Node, source: Node, *, alpha: Any = 1) -> Node:
    """x with whole places along an axis increased by source."""
    axis = axis_of(dim, len(x.shape))
    if alpha != 1:
        source = t.mul(source, operand(alpha, source.dtype))
    shape = tuple(d if i == axis else 1 for i, d in enumerate(source.shape))
    rows = broadcast(reshape(places, shape), source.shape)
    return t.scatter(x, rows, cast(source, x.dtype), axis=axis, reduce="add")


@TABLE("index_fill.int_Scalar")
def index_fill(call: Call, x: Node, dim: int, places: Node, value: Any) -> Node:
    """x with whole places along an axis set to a value."""
    axis = axis_of(dim, len(x.shape))
    count = places.shape[0]
    shape = tuple(count if i == axis else d for i, d in enumerate(x.shape))
    rows = reshape(places, tuple(count if i == axis else 1 for i in range(len(x.shape))))
    source = broadcast(operand(value, x.dtype), shape)
    return t.scatter(x, broadcast(rows, shape), source, axis=axis)


@TABLE("one_hot")
def one_hot(call: Call, x: Node, classes: int = -1) -> Node:
    """1 at the class, 0 elsewhere, along a new last axis."""
    size = call.shape[-1]
    return cast(_is_class(x, size), "i64")


def _is_class(x: Node, size: Dim) -> Node:
    return t.eq(reshape(x, (*x.shape, 1)), t.iota(size=size, dtype=x.dtype))


@TABLE("histc")
def histc(call: Call, x: Node, bins: int = 100, min: float = 0, max: float = 0) -> Node:
    """How often each whole number from min to max occurs, one bin each (how expert layers count
    their tokens).
    """
    if max - min != bins - 1 or min != 0:
        raise Unsupported(
            f"histc with {bins} bins over [{min}, {max}]: one bin a whole number from 0 was wanted"
        )
    flat = reshape(cast(t.floor(x) if x.dtype[0] in "fb" else x, "i64"), (product(x.shape),))
    return t.reduce_sum(cast(_is_class(flat, bins), call.dtype), axes=(0,))
