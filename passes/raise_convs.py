"""Raise convolutions: tokens that are delayed, weighted and added become causal_conv.

What stands along the length is followed back through slices, zeros and joins to the value that it
was made from, and by how many tokens it was delayed. A delay is a convolution with one tap of 1; a
conv1d over delayed tokens is one with its own taps, as long as none of them reads a later token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..ir.dims import Dim, as_dim, equal, names_in, product
from ..ir.graph import Graph
from ..ir.node import Node, walk
from ..ir.ops import model, recurrent
from ..ir.ops import tensor as t
from ..ir.rewrite import Rules, hole, rewrite
from .rules.exact_numbers import is_exact
from .rules.movement import MOVEMENT
from .rules.values import literal, reshaped, spread, transposed

CONVS = Rules("convs")
_ROOTS = (t.slice_, t.pad, t.concat, t.conv1d)


@dataclass(frozen=True)
class Delayed:
    """A node that along an axis is source[i - by] at i, and `fill` where i - by is not in
    [low, high); None: nothing was put there yet."""

    source: Node
    by: Dim
    low: Dim
    high: Dim
    fill: float | None = None


def trace_delay(node: Node, axis: int) -> Delayed:
    """What a node was made from by cutting, and by one number around it, along an axis."""
    found = _TRACES[node.op](node, axis) if node.op in _TRACES else None
    return Delayed(node, 0, 0, node.shape[axis]) if found is None else found


def _of_pad(node: Node, axis: int) -> Delayed | None:
    amounts = [(b, a) for b, a in zip(node["before"], node["after"], strict=True)]
    others = [pair for i, pair in enumerate(amounts) if i != axis]
    if any(pair != (0, 0) for pair in others):
        return None
    return _later(trace_delay(node.inputs[0], axis), amounts[axis][0], node["value"])


def _of_concat(node: Node, axis: int) -> Delayed | None:
    numbers = [literal(piece) for piece in node.inputs]
    filled = [i for i, number in enumerate(numbers) if number is None]
    fills = {number for number in numbers if number is not None}
    if node["axis"] != axis or len(filled) != 1 or len(fills) != 1:
        return None
    ahead = (piece.shape[axis] for piece in node.inputs[: filled[0]])
    inner = trace_delay(node.inputs[filled[0]], axis)
    return _later(inner, sum(ahead, start=0), float(fills.pop()))


def _of_slice(node: Node, axis: int) -> Delayed | None:
    if node["axis"] != axis or node["step"] != 1:
        return None
    inner = trace_delay(node.inputs[0], axis)
    low = _larger(inner.low, as_dim(node["start"] - inner.by))
    high = _larger(as_dim(-inner.high), as_dim(inner.by - node["stop"]))
    if low is None or high is None:
        return None
    by = as_dim(inner.by - node["start"])
    return replace(inner, by=by, low=low, high=as_dim(-high))


def _of_transpose(node: Node, axis: int) -> Delayed:
    inner = trace_delay(node.inputs[0], node["permutation"][axis])
    return replace(inner, source=node.with_inputs((inner.source,)))


def _of_cast(node: Node, axis: int) -> Delayed:
    inner = trace_delay(node.inputs[0], axis)
    return replace(inner, source=node.with_inputs((inner.source,)))


_TRACES = {
    t.pad: _of_pad,
    t.concat: _of_concat,
    t.slice_: _of_slice,
    t.transpose: _of_transpose,
    t.cast: _of_cast,
}


def _later(inner: Delayed, by: Dim, fill: float) -> Delayed | None:
    alike = inner.fill in (None, fill)
    return replace(inner, by=as_dim(inner.by + by), fill=fill) if alike else None


def _larger(a: Dim, b: Dim) -> Dim | None:
    """The larger of two dims, where their difference is known."""
    apart = as_dim(a - b)
    return (a if apart >= 0 else b) if isinstance(apart, int) else None


def _reads_whole(found: Delayed, length: Dim, by: int) -> bool:
    """Whether `length` entries, so many later, show every entry of the source that they reach."""
    short = as_dim(length - by - found.high)
    return found.low == 0 and isinstance(short, int) and short <= 0


def _is_all(found: Delayed, length: Dim, whole: Dim) -> bool:
    """Whether a part is all of the source, as where what was put before it is cut off again."""
    ends = ((found.by, 0), (found.low, 0), (found.high, whole), (length, whole))
    return all(equal(a, b) for a, b in ends)


# -- rules


@CONVS.on(hole("root", lambda node: node.op in _ROOTS))
def delay(root: Node) -> Node | None:
    """x[i - n] with a number before the start = causal_conv with the one tap n tokens back."""
    axis = _length_axis(root)
    if axis is None or root.op is t.conv1d:
        return None
    found = trace_delay(root, axis)
    if found.source is not root and _is_all(found, root.shape[axis], found.source.shape[axis]):
        return found.source
    if root.tensor.is_float:
        return _one_tap(root, axis)
    # Kernels take convolutions of floats.
    made = _one_tap(t.cast(root, dtype="f32"), axis) if is_exact(root) else None
    return None if made is None else t.cast(made, dtype=root.dtype)


@CONVS.on(hole("root", lambda node: node.op is t.concat))
def delay_behind(root: Node) -> Node | None:
    """What a model puts before the first token, learned or made: chosen there, zeros delayed."""
    axis = _length_axis(root)
    if axis is None or axis != root["axis"] or len(root.inputs) != 2:
        return None
    head, tail = root.inputs
    if not root.tensor.is_float or literal(head) is not None or not _is_constant(head):
        return None
    made = _one_tap(root.with_inputs((spread(t.scalar(0.0, root.dtype), head.shape), tail)), axis)
    if made is None or not isinstance(head.shape[axis], int):
        return None
    place = t.minimum(_places(root, axis), t.scalar(int(head.shape[axis]) - 1, "i64"))
    before = t.take(head, reshaped(place, (root.shape[axis],)), axis=axis)
    return t.where(_is_before(root, axis, int(head.shape[axis])), before, made)


def _one_tap(root: Node, axis: int) -> Node | None:
    found = trace_delay(root, axis)
    by, length = found.by, found.source.shape[axis]
    if not isinstance(by, int) or by < 1 or not equal(root.shape[axis], length):
        return None
    if not _reads_whole(found, length, by) or _is_constant(found.source):
        return None
    tap = t.concat(_numbers(1, (1, 1), root.dtype), _numbers(0, (1, by), root.dtype), axis=1)
    rows = _by_token(found.source, axis)
    made = recurrent.causal_conv(rows, spread(tap, (rows.shape[-1], by + 1)))
    made = _from_token(made, root, axis)
    if not found.fill:
        return made
    return t.where(_is_before(root, axis, by), t.scalar(found.fill, root.dtype), made)


def _places(node: Node, axis: int) -> Node:
    shape = tuple(d if i == axis else 1 for i, d in enumerate(node.shape))
    return reshaped(t.iota(size=node.shape[axis], dtype="i64"), shape)


def _is_before(node: Node, axis: int, by: int) -> Node:
    return t.lt(_places(node, axis), t.scalar(by, "i64"))


@CONVS.on(hole("root", lambda node: node.op in (t.conv1d, t.slice_)))
def convolution(root: Node) -> Node | None:
    """conv1d over tokens of which none is later than its own = causal_conv, or taps and linear."""
    conv, start = _convolution(root)
    length = root.shape[2] if conv is not None else 0
    if conv is None or isinstance(length, int) or conv["stride"] != 1:
        return None
    found = trace_delay(conv.inputs[0], 2)
    taps = _taps(conv)
    ahead = as_dim(found.by + conv["padding"] - start - taps.shape[2] + 1)
    if not isinstance(ahead, int) or ahead < 0 or not equal(found.source.shape[2], length):
        return None
    if not _reads_whole(found, length, ahead) or _is_constant(found.source) or found.fill:
        return None
    if ahead:
        taps = t.pad(taps, before=(0, 0, 0), after=(0, 0, ahead))
    made = _by_groups(transposed(found.source), taps, conv["groups"])
    if made is None:
        return None
    return transposed(t.add(made, conv.inputs[2]) if len(conv.inputs) > 2 else made)


@CONVS.on(hole("root", lambda node: node.op is t.slice_))
def cut_before(root: Node) -> Node | None:
    """f(conv)[:, : S] = f(conv[:, : S]), for what f moves or does to each number alone."""
    if root["step"] != 1 or root.inputs[0].op is t.conv1d:
        return None
    return _cut(root.inputs[0], root["axis"], root["start"], root["stop"])


def _cut(node: Node, axis: int, start: Dim, stop: Dim) -> Node | None:
    """The part of a node along an axis as what is done to that part of a conv1d; None for others
    and for a cut of channels.
    """
    if node.op is t.conv1d:
        return t.slice_(node, axis=2, start=start, stop=stop) if axis == 2 else None
    if node.op is t.transpose:
        inner = _cut(node.inputs[0], node["permutation"][axis], start, stop)
    elif node.op.has("elementwise") and len(node.inputs) == 1:
        inner = _cut(node.inputs[0], axis, start, stop)
    else:
        return None
    return None if inner is None else node.with_inputs((inner,))


def _convolution(root: Node) -> tuple[Node | None, Dim]:
    """The conv1d of which a node is the whole or a part of the length, and where that starts."""
    if root.op is t.conv1d:
        return root, 0
    inner = root.inputs[0]
    along = inner.op is t.conv1d and root["axis"] == 2 and root["step"] == 1
    return (inner, root["start"]) if along else (None, 0)


def _taps(conv: Node) -> Node:
    """The weights w[O, C / groups, K], with zeros between them where they are dilated."""
    w, apart = conv.inputs[1], conv["dilation"]
    if apart == 1:
        return w
    out, inner, count = w.shape
    wide = t.pad(
        reshaped(w, (out, inner, count, 1)), before=(0, 0, 0, 0), after=(0, 0, 0, apart - 1)
    )
    flat = reshaped(wide, (out, inner, product((count, apart))))
    return t.slice_(flat, axis=2, start=0, stop=product((count - 1, apart)) + 1)


def _by_groups(x: Node, w: Node, groups: int) -> Node | None:
    """x[B, S, C] convolved by w[O, C / groups, K]: each channel alone, or all with all."""
    batch, length, channels = x.shape
    outputs, inner, taps = w.shape
    if taps == 1 and groups == 1:
        return model.linear(x, reshaped(w, (outputs, inner)))
    if inner == 1 and equal(groups, channels):
        if not equal(outputs, channels):
            times = as_dim(outputs // channels)
            each = spread(reshaped(x, (*x.shape, 1)), (*x.shape, times))
            x = reshaped(each, (batch, length, outputs))
        return recurrent.causal_conv(x, reshaped(w, (outputs, taps)))
    if groups != 1 or not isinstance(taps, int):
        return None
    # The tokens that the taps read, side by side, and one linear over them.
    shape = (batch, length, channels, taps)
    seen = reshaped(spread(reshaped(x, (*x.shape, 1)), shape), (*shape[:2], channels * taps))
    each = t.eq(reshaped(t.iota(size=taps, dtype="i64"), (taps, 1)), t.iota(size=taps, dtype="i64"))
    ones = t.cast(spread(each, (channels, taps, taps)), dtype=x.dtype)
    seen = recurrent.causal_conv(seen, reshaped(ones, (channels * taps, taps)))
    return model.linear(seen, reshaped(w, (outputs, channels * taps)))


def _length_axis(node: Node) -> int | None:
    """The one axis behind the first whose size is not a number; None where there are others."""
    open_axes = [i for i, d in enumerate(node.shape) if i and names_in(d)]
    names = [names_in(node.shape[i]) for i in open_axes]
    alone = len(open_axes) == 1 and not names_in(node.shape[0]) & names[0]
    return open_axes[0] if alone else None


def _is_constant(node: Node) -> bool:
    """Whether no input is behind a node: what depends on positions alone needs no state."""
    return not any(n.op.name == "input" for n in walk((node,)))


def _numbers(value: int, shape: tuple[Dim, ...], dtype: str) -> Node:
    return spread(t.scalar(value, dtype), shape)


def _order(node: Node, axis: int) -> tuple[int, ...]:
    rest = (i for i in range(1, len(node.shape)) if i != axis)
    return (0, axis, *rest)


def _by_token(node: Node, axis: int) -> Node:
    """[B, ..., S, ...] as [B, S, C]."""
    order = _order(node, axis)
    moved = node if order == tuple(sorted(order)) else t.transpose(node, permutation=order)
    return reshaped(moved, (*moved.shape[:2], product(moved.shape[2:])))


def _from_token(rows: Node, like: Node, axis: int) -> Node:
    """[B, S, C] in the order and shape of another node."""
    order = _order(like, axis)
    wide = reshaped(rows, tuple(like.shape[i] for i in order))
    if order == tuple(sorted(order)):
        return wide
    return t.transpose(wide, permutation=tuple(order.index(i) for i in range(len(order))))


@dataclass(frozen=True)
class RaiseConvs:
    """Convolutions along the length, and tokens that are delayed, become causal_conv."""

    name: ClassVar[str] = "raise-convs"

    def run(self, graph: Graph) -> Graph:
        """The graph with every causal convolution as one op; the graph is canonical before."""
        return rewrite(graph, CONVS + MOVEMENT)
