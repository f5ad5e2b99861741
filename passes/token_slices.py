"""One token's part of a value, made of one token's parts of what the value is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..ir.dims import Dim, as_dim, equal, is_no_less, product, quotient_and_rest
from ..ir.node import Node
from ..ir.node import item as item_of
from ..ir.ops import tensor as t


@dataclass
class TokenSlices:
    """Slices [t, t + 1) of values, taken as near to the inputs as they can be; each made once."""

    made: dict[tuple[Node, int, Dim], Node] = field(
        default_factory=dict[tuple[Node, int, Dim], Node]
    )
    whole: dict[Node, Node] = field(default_factory=dict[Node, Node])

    def at(self, node: Node, axis: int, place: Dim) -> Node:
        """The part of a value at one place of an axis, whose size there is 1."""
        key = (node, axis, place)
        if key not in self.made:
            rule = _RULES.get(node.op.name) or (
                _elementwise if node.op.has("elementwise") else None
            )
            found = rule(self, node, axis, place) if rule else None
            self.made[key] = found or self._cut(node, axis, place)
        return self.made[key]

    def _cut(self, node: Node, axis: int, place: Dim) -> Node:
        return t.slice_(self.of(node), axis=axis, start=place, stop=place + 1)

    def of(self, root: Node) -> Node:
        """A value whose slices of one place are taken as near to the inputs as they can be."""
        stack = [root]
        while stack:
            node = stack[-1]
            missing = [i for i in self._read(node) if i not in self.whole]
            if node in self.whole:
                stack.pop()
            elif missing:
                stack.extend(missing)
            else:
                self.whole[node] = self._again(node)
                stack.pop()
        return self.whole[root]

    def _read(self, node: Node) -> tuple[Node, ...]:
        return () if _is_one(node) else node.inputs

    def _again(self, node: Node) -> Node:
        if _is_one(node):
            source = node.inputs[0]
            if source.op.has("leaf"):
                return node
            made = self.at(source, node["axis"], node["start"])
            return made if made is node else self.of(made)
        inputs = tuple(self.whole[i] for i in node.inputs)
        return node.with_inputs(inputs) if inputs else node


def _is_one(node: Node) -> bool:
    """Whether a node is one place of an axis."""
    if node.op is not t.slice_:
        return False
    axis: int = node["axis"]
    return bool(node["stop"] == node["start"] + 1) and not equal(node.inputs[0].shape[axis], 1)


Rule = Callable[[TokenSlices, Node, int, Dim], Node | None]


def _elementwise(self: TokenSlices, node: Node, axis: int, place: Dim) -> Node | None:
    inputs: list[Node] = []
    for x in node.inputs:
        own = axis - len(node.shape) + len(x.shape)
        spread = own < 0 or equal(x.shape[own], 1)
        inputs.append(x if spread else self.at(x, own, place))
    return node.op.build(tuple(inputs), node.attributes)


def _transpose(self: TokenSlices, node: Node, axis: int, place: Dim) -> Node | None:
    own = node["permutation"][axis]
    return t.transpose(self.at(node.inputs[0], own, place), permutation=node["permutation"])


def _reshape(self: TokenSlices, node: Node, axis: int, place: Dim) -> Node | None:
    x = node.inputs[0]
    for own in range(len(x.shape)):
        before = equal(product(x.shape[:own]), product(node.shape[:axis]))
        if before and equal(x.shape[own], node.shape[axis]):
            return t.reshape(self.at(x, own, place), shape=_one(node, axis))
    width = product(node.shape[axis + 1 :])
    part = _stretch(self, x, product(node.shape[:axis]), as_dim(place * width), width)
    return None if part is None else t.reshape(part, shape=_one(node, axis))


def _stretch(self: TokenSlices, x: Node, lead: Dim, start: Dim, size: Dim) -> Node | None:
    """The elements [start, start + size) of each of the first `lead` parts of a value, in reading
    order, where they lie in one row; [lead, 1, size]. So are scores shifted by their distance.
    """
    axes = [n for n in range(len(x.shape)) if equal(product(x.shape[:n]), lead)]
    if not axes:
        return None
    axis = axes[-1]
    width = product(x.shape[axis + 1 :])
    if x.op is t.reshape:
        return _stretch(self, x.inputs[0], lead, start, size)
    if x.op is t.slice_ and x["axis"] == axis and x["step"] == 1:
        return _stretch(self, x.inputs[0], lead, as_dim(start + x["start"] * width), size)
    found = quotient_and_rest(start, width)
    if found is None or not is_no_less(width, found[1] + size):
        return None
    row, first = found
    part = t.reshape(self.at(x, axis, row), shape=(lead, 1, width))
    return t.slice_(part, axis=2, start=first, stop=as_dim(first + size))


def _one(node: Node, axis: int) -> tuple[object, ...]:
    return tuple(1 if i == axis else d for i, d in enumerate(node.shape))


def _broadcast(self: TokenSlices, node: Node, axis: int, place: Dim) -> Node | None:
    x = node.inputs[0]
    own = axis - len(node.shape) + len(x.shape)
    spread = own < 0 or equal(x.shape[own], 1)
    part = x if spread else self.at(x, own, place)
    shape = _one(node, axis)
    return part if tuple(part.shape) == shape else t.broadcast(part, shape=shape)


def _slice(self: TokenSlices, node: Node, axis: int, place: Dim) -> Node | None:
    x, start = node.inputs[0], node["start"]
    if axis == node["axis"]:
        return self.at(x, axis, start + place * node["step"])
    part = self.at(x, axis, place)
    # Two slices of what cannot be cut further stand in the order of their axes, the first inmost.
    cut = part.op is t.slice_ and part["axis"] == axis and part.inputs[0] in (x, self.whole.get(x))
    return None if cut and axis > node["axis"] else node.with_inputs((part,))


def _concat(self: TokenSlices, node: Node, axis: int, place: Dim) -> Node | None:
    if axis != node["axis"]:
        return t.concat(*(self.at(x, axis, place) for x in node.inputs), axis=node["axis"])
    for x in node.inputs:
        size = x.shape[axis]
        if not isinstance(size, int) or not isinstance(place, int):
            return None
        if place < size:
            return x if size == 1 else self.at(x, axis, place)
        place -= size
    return None


def _pad(self: TokenSlices, node: Node, axis: int, place: Dim) -> Node | None:
    x, before = node.inputs[0], node["before"][axis]
    size = x.shape[axis]
    around = before != 0 or node["after"][axis] != 0
    numbers = isinstance(before, int) and isinstance(size, int) and isinstance(place, int)
    if around and not numbers:
        return None
    if around and not before <= place < before + size:
        value = t.scalar(node["value"], node.dtype)
        return t.broadcast(value, shape=_one(node, axis))
    rest = {n: tuple(0 if i == axis else p for i, p in enumerate(node[n])) for n in _PADS}
    part = self.at(x, axis, place - before)
    return t.pad(part, **rest, value=node["value"]) if any(map(any, rest.values())) else part


_PADS = ("before", "after")


def _rows(self: TokenSlices, node: Node, axis: int, place: Dim) -> Node | None:
    """What goes along the last axis alone."""
    x, *rest = node.inputs
    if axis == len(node.shape) - 1:
        return None
    return node.op.build((self.at(x, axis, place), *rest), node.attributes)


def _along(self: TokenSlices, node: Node, axis: int, place: Dim) -> Node | None:
    """What goes along one axis."""
    if axis == node["axis"]:
        return None
    return node.with_inputs((self.at(node.inputs[0], axis, place),))


def _flip(self: TokenSlices, node: Node, axis: int, place: Dim) -> Node | None:
    """From the other end, along the axis that is turned."""
    axes: tuple[int, ...] = node["axes"]
    if axis not in axes:
        return node.with_inputs((self.at(node.inputs[0], axis, place),))
    part = self.at(node.inputs[0], axis, as_dim(node.shape[axis] - 1 - place))
    rest = tuple(a for a in axes if a != axis)
    return t.flip(part, axes=rest) if rest else part


def _reduced(self: TokenSlices, node: Node, axis: int, place: Dim) -> Node | None:
    axes: tuple[int, ...] = node["axes"]
    if node["keepdims"]:
        own = axis
    else:
        own = [a for a in range(len(node.inputs[0].shape)) if a not in axes][axis]
    return None if own in axes else node.with_inputs((self.at(node.inputs[0], own, place),))


def _iota(self: TokenSlices, node: Node, axis: int, place: Dim) -> Node | None:
    return t.reshape(t.dim_value(dim=place, dtype=node.dtype), shape=(1,))


def _take(self: TokenSlices, node: Node, axis: int, place: Dim) -> Node | None:
    x, index = node.inputs
    first, rank = node["axis"], len(index.shape)
    if first <= axis < first + rank:
        return t.take(x, self.at(index, axis - first, place), axis=first)
    own = axis if axis < first else axis - rank + 1
    return t.take(self.at(x, own, place), index, axis=first)


def _take_along(self: TokenSlices, node: Node, axis: int, place: Dim) -> Node | None:
    x, index = node.inputs
    part = self.at(index, axis, place)
    source = x if axis == node["axis"] else self.at(x, axis, place)
    return t.take_along(source, part, axis=node["axis"])


def _scatter(self: TokenSlices, node: Node, axis: int, place: Dim) -> Node | None:
    """Where it writes along another axis."""
    if axis == node["axis"]:
        return None
    return node.with_inputs(tuple(self.at(i, axis, place) for i in node.inputs))


def _matmul(self: TokenSlices, node: Node, axis: int, place: Dim) -> Node | None:
    x, y = node.inputs
    rank = len(node.shape)
    if axis == rank - 1:
        return t.matmul(x, self.at(y, len(y.shape) - 1, place))
    left = _batch_part(self, x, axis - rank + len(x.shape), place)
    # The rows of y are what is summed over: a row of the product has all of them.
    right = y if axis == rank - 2 else _batch_part(self, y, axis - rank + len(y.shape), place)
    return t.matmul(left, right)


def _batch_part(self: TokenSlices, x: Node, own: int, place: Dim) -> Node:
    spread = own < 0 or equal(x.shape[own], 1)
    return x if spread else self.at(x, own, place)


def _item(self: TokenSlices, node: Node, axis: int, place: Dim) -> Node | None:
    source = node.inputs[0]
    if source.op not in (t.topk, t.sort) or axis == source["axis"]:
        return None
    part = self.at(source.inputs[0], axis, place)
    return item_of(source.with_inputs((part,)), index=node["index"])


def _largest(self: TokenSlices, node: Node, axis: int, place: Dim) -> Node | None:
    own = axis if node["keepdims"] or axis < node["axis"] else axis + 1
    if own == node["axis"]:
        return None
    return node.with_inputs((self.at(node.inputs[0], own, place),))


_RULES: Mapping[str, Rule] = {
    "transpose": _transpose,
    "reshape": _reshape,
    "broadcast": _broadcast,
    "slice": _slice,
    "concat": _concat,
    "pad": _pad,
    "linear": _rows,
    "rms_norm": _rows,
    "layer_norm": _rows,
    "softmax": _along,
    "cumsum": _along,
    "cumprod": _along,
    "cummax": _along,
    "logcumsumexp": _along,
    "flip": _flip,
    "iota": _iota,
    "take": _take,
    "take_along": _take_along,
    "scatter": _scatter,
    "matmul": _matmul,
    "item": _item,
    "argmax": _largest,
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min", "reduce_prod"), _reduced),
}
