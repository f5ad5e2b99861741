"""Movement ops that cancel or join."""

from __future__ import annotations

from typing import Any

from ...ir.dims import equal, equal_shapes
from ...ir.node import Node
from ...ir.ops import tensor as t
from ...ir.rewrite import Rules, any_of, hole, number
from .values import holds

MOVEMENT = Rules("movement")
x = hole("x")
_MOVES = (t.reshape, t.transpose, t.slice_, t.flip)


@MOVEMENT.on(t.reshape(x))
def reshape_to_itself(root: Node, x: Node) -> Node | None:
    """reshape(x) to x's own shape = x."""
    return x if equal_shapes(root.shape, x.shape) else None


@MOVEMENT.on(t.reshape(t.reshape(x)))
def reshape_of_reshape(root: Node, x: Node) -> Node:
    """The last shape counts."""
    return t.reshape(x, shape=root["shape"])


@MOVEMENT.on(t.transpose(x))
def transpose_to_itself(root: Node, x: Node) -> Node | None:
    """The identical permutation moves nothing."""
    return x if root["permutation"] == tuple(range(len(x.shape))) else None


@MOVEMENT.on(t.transpose(t.transpose(x)))
def transpose_of_transpose(root: Node, x: Node) -> Node:
    """Permutations compose."""
    inner: tuple[int, ...] = root.inputs[0]["permutation"]
    outer: tuple[int, ...] = root["permutation"]
    return t.transpose(x, permutation=tuple(inner[p] for p in outer))


@MOVEMENT.on(t.broadcast(x))
def broadcast_to_itself(root: Node, x: Node) -> Node | None:
    """broadcast(x) to x's own shape = x."""
    return x if equal_shapes(root.shape, x.shape) else None


@MOVEMENT.on(t.broadcast(t.broadcast(x)))
def broadcast_of_broadcast(root: Node, x: Node) -> Node:
    """The last shape counts."""
    return t.broadcast(x, shape=root["shape"])


@MOVEMENT.on(t.slice_(x))
def slice_of_all(root: Node, x: Node) -> Node | None:
    """x[0 : size] = x."""
    axis: int = root["axis"]
    size = x.shape[axis]
    whole = root["step"] == 1 and root["start"] == 0 and equal(root["stop"], size)
    return x if whole else None


@MOVEMENT.on(t.slice_(t.slice_(x)))
def slice_of_slice(root: Node, x: Node) -> Node | None:
    """x[a : b][c : d] = x[a + c : a + d] along one axis."""
    inner = root.inputs[0]
    if inner["axis"] != root["axis"] or inner["step"] != 1:
        return None
    begin = inner["start"]
    new: dict[str, Any] = {"start": begin + root["start"], "stop": begin + root["stop"]}
    return t.slice_(x, axis=root["axis"], step=root["step"], **new)


@MOVEMENT.on(t.slice_(x))
def slice_of_concat(root: Node, x: Node) -> Node | None:
    """A slice that falls into one piece of a concat is a slice of that piece."""
    axis: int = root["axis"]
    if x.op is not t.concat or x["axis"] != axis or root["step"] != 1:
        return None
    begin: Any = 0
    for piece in x.inputs:
        end = begin + piece.shape[axis]
        inside = _is_between(begin, root["start"], end) and _is_between(begin, root["stop"], end)
        if inside:
            start, stop = root["start"] - begin, root["stop"] - begin
            return t.slice_(piece, axis=axis, start=start, stop=stop)
        begin = end
    return None


def _is_between(low: Any, value: Any, high: Any) -> bool:
    """low <= value <= high, where that is sure."""
    if all(isinstance(v, int) for v in (low, value, high)):
        return low <= value <= high
    return equal(low, value) or equal(value, high)


@MOVEMENT.on(t.concat(x))
def concat_of_one(root: Node, x: Node) -> Node:
    """concat(x) = x."""
    return x


@MOVEMENT.on(hole("joined", lambda node: node.op is t.concat))
def concat_of_concat(root: Node) -> Node | None:
    """concat(concat(a, b), c) = concat(a, b, c) along one axis."""
    axis = root["axis"]
    inner = [i.op is t.concat and i["axis"] == axis for i in root.inputs]
    if not any(inner):
        return None
    pieces = (i.inputs if joined else (i,) for i, joined in zip(root.inputs, inner, strict=True))
    return t.concat(*(p for piece in pieces for p in piece), axis=axis)


@MOVEMENT.on(hole("joined", lambda node: node.op is t.concat))
def concat_of_neighbours(root: Node) -> Node | None:
    """concat(x[a : b], x[b : c]) = x[a : c] along one axis."""
    axis = root["axis"]
    pieces: list[Node] = [root.inputs[0]]
    for piece in root.inputs[1:]:
        last = pieces[-1]
        if _meet(last, piece, axis):
            pieces[-1] = t.slice_(
                last.inputs[0], axis=axis, start=last["start"], stop=piece["stop"]
            )
        else:
            pieces.append(piece)
    return t.concat(*pieces, axis=axis) if len(pieces) < len(root.inputs) else None


def _meet(a: Node, b: Node, axis: int) -> bool:
    """Whether b is the slice of the same value that begins where a ends."""
    slices = a.op is b.op is t.slice_ and a.inputs == b.inputs
    if not slices or not a["axis"] == b["axis"] == axis:
        return False
    return a["step"] == b["step"] == 1 and equal(a["stop"], b["start"])


@MOVEMENT.on(t.pad(x))
def pad_of_nothing(root: Node, x: Node) -> Node | None:
    """pad(x) by zero everywhere = x."""
    return x if not any((*root["before"], *root["after"])) else None


@MOVEMENT.on(t.flip(x))
def flip_of_nothing(root: Node, x: Node) -> Node | None:
    """flip(x) along no axis, or along axes of size 1, = x."""
    axes: tuple[int, ...] = root["axes"]
    return x if all(x.shape[a] == 1 for a in axes) else None


@MOVEMENT.on(t.flip(t.flip(x)))
def flip_of_flip(root: Node, x: Node) -> Node | None:
    """Twice the other way round is the same way round."""
    return x if sorted(root["axes"]) == sorted(root.inputs[0]["axes"]) else None


@MOVEMENT.on(t.cast(any_of(*(o(t.cast(x)) for o in _MOVES))))
def cast_of_moved_widening(root: Node, x: Node) -> Node | None:
    """cast(move(cast(x))) = cast(move(x)) where the inner cast loses nothing."""
    move = root.inputs[0]
    if not holds(move.dtype, x.dtype):
        return None
    return t.cast(move.with_inputs((x,)), dtype=root.dtype)


@MOVEMENT.on(t.reshape(any_of(*(o(x) for o in (t.reduce_sum, t.reduce_max, t.reduce_min)))))
def reshape_of_reduction(root: Node, x: Node) -> Node | None:
    """A reshape that puts reduced axes back, or drops them, is the other keepdims."""
    reduction = root.inputs[0]
    other = not reduction["keepdims"]
    new = reduction.op(x, axes=reduction["axes"], keepdims=other)
    return new if equal_shapes(new.shape, root.shape) else None


@MOVEMENT.on(t.reshape(t.mul(hole("total", lambda node: node.op is t.reduce_sum), number("c"))))
def reshape_of_mean(root: Node, total: Node, c: float) -> Node:
    """reshape(sum(x) * c) = reshape(sum(x)) * c, so that the axis of a mean can be put back."""
    return t.mul(t.reshape(total, shape=root["shape"]), t.scalar(c, root.dtype))


@MOVEMENT.on(t.reshape(t.broadcast(x)))
def reshape_of_broadcast(root: Node, x: Node) -> Node | None:
    """A reshape that only drops or adds axes of 1 goes before the broadcast."""
    wide = root.inputs[0].shape
    thin = (1,) * (len(wide) - len(x.shape)) + tuple(x.shape)
    kept = [(w, s) for w, s in zip(wide, thin, strict=True) if w != 1]
    real = tuple(d for d in root.shape if d != 1)
    if not equal_shapes(tuple(w for w, _ in kept), real):
        return None
    sizes = iter(kept)
    shape = tuple(1 if d == 1 else next(sizes)[1] for d in root.shape)
    return t.broadcast(t.reshape(x, shape=shape), shape=root.shape)


@MOVEMENT.on(t.slice_(t.broadcast(x)))
def slice_of_broadcast(root: Node, x: Node) -> Node:
    """slice(broadcast(x)) = broadcast(slice(x)), or of x itself where x is the same along it."""
    along: int = root["axis"]
    axis = along - len(root.shape) + len(x.shape)
    if axis >= 0 and equal(x.shape[axis], root.inputs[0].shape[along]):
        x = t.slice_(x, axis=axis, start=root["start"], stop=root["stop"], step=root["step"])
    return t.broadcast(x, shape=root.shape)


@MOVEMENT.on(t.take_along(t.broadcast(x), hole("index")))
def take_along_repeated_rows(root: Node, x: Node, index: Node) -> Node | None:
    """Out of rows that are all the same, places are taken from the one row."""
    wide = root.inputs[0].shape
    axis: int = root["axis"]
    own = axis - (len(wide) - len(x.shape))
    if own < 0 or not equal(x.shape[own], wide[axis]):
        return None
    if any(d != 1 for at, d in enumerate(x.shape) if at != own):
        return None
    return t.take(t.reshape(x, shape=(x.shape[own],)), index, axis=0)


@MOVEMENT.on(t.take(t.broadcast(x), hole("index")))
def take_repeated_rows(root: Node, x: Node, index: Node) -> Node | None:
    """Rows that are all the same are the one row, spread as far as the index."""
    axis: int = root["axis"]
    own = axis - (len(root.inputs[0].shape) - len(x.shape))
    if own >= 0 and x.shape[own] != 1:
        return None
    if own >= 0:
        x = t.reshape(x, shape=(*x.shape[:own], *(1 for _ in index.shape), *x.shape[own + 1 :]))
    return t.broadcast(x, shape=root.shape)
