"""Pull evaluation: the value of any node at an index, as Triton text over a kernel's pointers.

Elementwise ops combine the values of their inputs; movement ops are maps of the index; take is a
load whose index is itself a value; reductions and what else has loops emit them where they are
pulled (see loops.py). Indices are scalars or blocks that broadcast against one another, so that the
same text serves rows, tiles of a matrix and the hooks of templates. Where the mask is false a load
gives 0 and reads nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ...ir.dims import Dim, Shape, as_dim, equal, product, upper_bound
from ...ir.errors import IRError
from ...ir.node import Node
from ...ir.types import CacheType, TensorType
from ..errors import CodegenError
from ..reshaping import matching_groups
from .elementwise import EMIT, elementwise
from .text import (
    ZERO,
    Index,
    Mask,
    Point,
    Test,
    Writer,
    axes_of,
    divided,
    joined,
    narrowed,
    times,
    total,
)
from .values import COMPUTED, PACKED, number

Source = Callable[[Point, Mask], str]
"""The value of a node at an index, under a mask."""

WIDE = 1 << 31


@dataclass(frozen=True)
class Place:
    """A pointer argument and the tensor behind it, contiguous."""

    name: str
    dtype: str
    shape: Shape
    # More elements than 32 bits count: as many blocks of a cache as memory has.
    wide: bool = False

    @staticmethod
    def of(name: str, node: Node, bounds: Mapping[str, tuple[int, int]]) -> Place:
        """The place of a node's whole value."""
        kind = node.type
        if isinstance(kind, CacheType):
            return Place(name, kind.dtype, kind.array(WIDE), wide=True)
        if not isinstance(kind, TensorType):
            raise CodegenError(f"an argument of type {kind}")
        return Place(name, kind.dtype, kind.shape, _is_wide(kind, bounds))


def _is_wide(kind: TensorType, bounds: Mapping[str, tuple[int, int]]) -> bool:
    try:
        return upper_bound(product(kind.shape), bounds) >= WIDE
    except (IRError, KeyError):
        return True


@dataclass
class Pull:
    """One function's pulls: where values are known, what was pulled already in this scope; with
    `tiles`, lanes that gather along an axis do so by tiles, as where no other program does work.
    """

    writer: Writer
    sources: Mapping[Node, Source] = field(default_factory=dict[Node, Source])
    rules: Mapping[str, Callable[[Pull, Node, Point, Mask], str]] = field(
        default_factory=lambda: RULES
    )
    tiles: bool = False

    def value(self, node: Node, at: Sequence[Index], mask: Mask = ()) -> str:
        """The name of the element at an index: scalars, or blocks of indices."""
        point = tuple(at)
        mask = narrowed(mask, axes_of(point))
        key = (node, point, mask)
        found = self.writer.known(key)
        if found is None:
            found = self._made(node, point, mask)
            self.writer.remember(key, found)
        return found

    def _made(self, node: Node, at: Point, mask: Mask) -> str:
        if node in self.sources:
            return self.sources[node](at, mask)
        name = node.op.name
        if name in self.rules:
            return self.rules[name](self, node, at, mask)
        if name in EMIT:
            xs = [self.value(x, self.broadcast(x, node.shape, at), mask) for x in node.inputs]
            text = elementwise(node, xs)
            return text if text in xs else self.writer.value(text)
        raise CodegenError(f"{name} : {node.type} has no value by index in a kernel")

    def broadcast(self, x: Node, shape: Shape, at: Point) -> Point:
        """The index of x where the result of a broadcast is at `at`."""
        skip = len(shape) - len(x.shape)
        pairs = zip(x.shape, shape[skip:], at[skip:], strict=True)
        return tuple(ZERO if d == 1 and not equal(s, 1) else i for d, s, i in pairs)

    def test(self, index: Index, sign: str, boundary: Dim) -> Test:
        """Whether an index is below (not below) a boundary."""
        if index.is_number and isinstance(boundary, int):
            holds = index.offset < boundary if sign == "<" else index.offset >= boundary
            return Test(self.writer.value(number(holds, "bool"), prefix="m"), index.axes)
        name = self.writer.value(f"{index.text} {sign} {self.writer.dim(boundary)}", prefix="m")
        return Test(name, index.axes)

    # -- memory

    def load(self, place: Place, at: Point, mask: Mask) -> str:
        """The element of a place, wide as it is in a register."""
        bits = PACKED.get(place.dtype)
        mask = narrowed(mask, axes_of(at))
        zero = "0.0" if place.dtype.startswith("f8") else "0"  # none of them is made of an integer
        under = f", mask={joined(mask)}, other={zero}" if mask else ""
        if bits:
            return self._unpacked(place, at, under, bits)
        loaded = f"tl.load({self.address(place, at)}{under})"
        if place.dtype == "bool":
            return self.writer.value(f"{loaded} != 0")
        wide = COMPUTED[place.dtype]
        converted = place.dtype in ("f16", "bf16", "f8e4m3", "f8e5m2")
        return self.writer.value(f"{loaded}.to({wide})" if converted else loaded)

    def _unpacked(self, place: Place, at: Point, under: str, bits: int) -> str:
        per = 8 // bits
        inner = divided(at[-1], per, self.writer, rest=False)
        shift = times(divided(at[-1], per, self.writer, rest=True), bits, self.writer)
        last = as_dim((place.shape[-1] + per - 1) // per)
        bytes_ = Place(place.name, "u8", (*place.shape[:-1], last), place.wide)
        byte = f"tl.load({self.address(bytes_, (*at[:-1], inner))}{under})"
        code = f"(({byte}.to(tl.int32) >> {shift.text}) & {2**bits - 1})"
        if place.dtype != "u4":  # two's complement
            code = f"(({code} ^ {2 ** (bits - 1)}) - {2 ** (bits - 1)})"
        return self.writer.value(f"{code}.to({COMPUTED[place.dtype]})")

    def address(self, place: Place, at: Point) -> str:
        """Where an element lies, as an expression."""
        if len(at) != len(place.shape):
            raise CodegenError(f"{len(at)} indices into {place.dtype}{place.shape}")
        parts: list[Index] = []
        for axis, index in enumerate(at):
            if place.shape[axis] == 1 and index.is_number:
                continue
            if place.wide and index.base:
                # The number of a loop is a plain one where it is interpreted, and has no methods.
                wide = self.writer.value(f"tl.cast({index.text}, tl.int64)", prefix="i")
                index = replace(index, base=wide, offset=0)
            parts.append(times(index, product(place.shape[axis + 1 :]), self.writer))
        offset = total(parts, self.writer)
        pointer = self.writer.pointer(place.name)
        return pointer if offset == ZERO else f"{pointer} + {offset.text}"

    def store(self, place: Place, at: Point, value: str, mask: Mask) -> None:
        """Put a value into a place, rounded to its dtype."""
        if place.dtype in PACKED:
            raise CodegenError(f"a kernel that gives {place.dtype}{place.shape}")
        under = f", mask={joined(mask)}" if mask else ""
        self.writer.line(f"tl.store({self.address(place, at)}, {value}{under})")


# -- rules: op -> (pull, node, index, mask) -> the name of the value


def _constant(pull: Pull, node: Node, at: Point, mask: Mask) -> str:
    return pull.writer.value(number(node["value"], node.dtype))


def _iota(pull: Pull, node: Node, at: Point, mask: Mask) -> str:
    return as_value(pull, at[0], node.dtype)


def as_value(pull: Pull, index: Index, dtype: str) -> str:
    """An index as a value of a dtype."""
    if index.is_number:
        return pull.writer.value(number(index.offset, dtype))
    return pull.writer.value(f"{index.text}.to({COMPUTED[dtype]})")


def as_index(value: str, at: Sequence[Index]) -> Index:
    """A value that was read at an index, as an index itself."""
    axes = axes_of(at)
    return Index(value, 0, axes, not axes)


def _dim_value(pull: Pull, node: Node, at: Point, mask: Mask) -> str:
    d = node["dim"]
    if isinstance(d, int):
        return pull.writer.value(number(d, node.dtype))
    return pull.writer.value(f"({pull.writer.dim(d)} + 0).to({COMPUTED[node.dtype]})")


def _reshape(pull: Pull, node: Node, at: Point, mask: Mask) -> str:
    x = node.inputs[0]
    return pull.value(x, reshaped(pull.writer, x.shape, node.shape, at), mask)


def reshaped(writer: Writer, source: Shape, shape: Shape, at: Point) -> Point:
    """The index into `source` of the element that a row-major reshape to `shape` puts at `at`."""
    result: list[Index] = [ZERO] * len(source)
    for left, right in matching_groups(source, shape):
        if len(left) == len(right) == 1:
            result[left[0]] = at[right[0]]
            continue
        below = [product(shape[i] for i in right[place + 1 :]) for place in range(len(right))]
        parts = [times(at[axis], d, writer) for axis, d in zip(right, below, strict=True)]
        flat = total(parts, writer)
        for place, axis in enumerate(left):
            rest = product(source[i] for i in left[place + 1 :])
            part = divided(flat, rest, writer, rest=False)
            result[axis] = part if place == 0 else divided(part, source[axis], writer, rest=True)
    return tuple(result)


def _transpose(pull: Pull, node: Node, at: Point, mask: Mask) -> str:
    source: list[Index] = [ZERO] * len(at)
    for i, axis in enumerate(node["permutation"]):
        source[axis] = at[i]
    return pull.value(node.inputs[0], source, mask)


def _broadcast(pull: Pull, node: Node, at: Point, mask: Mask) -> str:
    return pull.value(node.inputs[0], pull.broadcast(node.inputs[0], node.shape, at), mask)


def replaced(at: Point, axis: int, index: Index) -> Point:
    """The point with another index on one axis."""
    return (*at[:axis], index, *at[axis + 1 :])


def _slice(pull: Pull, node: Node, at: Point, mask: Mask) -> str:
    axis, start = node["axis"], node["start"]
    index = times(at[axis], node["step"], pull.writer)
    return pull.value(node.inputs[0], replaced(at, axis, shifted(pull, index, start)), mask)


def shifted(pull: Pull, index: Index, by: Dim, *, back: bool = False) -> Index:
    """The index so many further, or before."""
    if isinstance(by, int):
        return index.plus(-by if back else by)
    sign = "-" if back else "+"
    name = pull.writer.value(f"{index.text} {sign} {pull.writer.dim(by)}", prefix="i")
    return replace(index, base=name, offset=0)


def _concat(pull: Pull, node: Node, at: Point, mask: Mask) -> str:
    """The pieces under masks of their own, chosen by where the index is."""
    axis = node["axis"]
    starts: list[Dim] = [0]
    for x in node.inputs:
        starts.append(as_dim(starts[-1] + x.shape[axis]))
    if at[axis].is_number and all(isinstance(s, int) for s in starts):
        which = next(i for i, s in enumerate(starts[1:]) if at[axis].offset < s)
        moved = replaced(at, axis, at[axis].plus(-int(starts[which])))
        return pull.value(node.inputs[which], moved, mask)
    last = len(node.inputs) - 1
    result = ""
    for which in range(last, -1, -1):
        here = mask
        if which:
            here = (*here, pull.test(at[axis], ">=", starts[which]))
        if which < last:
            here = (*here, pull.test(at[axis], "<", starts[which + 1]))
        moved = replaced(at, axis, shifted(pull, at[axis], starts[which], back=True))
        value = pull.value(node.inputs[which], moved, here)
        if which < last:
            test = pull.test(at[axis], "<", starts[which + 1])
            value = pull.writer.value(f"tl.where({test.name}, {value}, {result})")
        result = value
    return result


def _pad(pull: Pull, node: Node, at: Point, mask: Mask) -> str:
    x = node.inputs[0]
    inside: list[Test] = []
    source = list(at)
    for axis, (before, after) in enumerate(zip(node["before"], node["after"], strict=True)):
        if before != 0:
            inside.append(pull.test(at[axis], ">=", before))
        if after != 0:
            inside.append(pull.test(at[axis], "<", as_dim(before + x.shape[axis])))
        source[axis] = shifted(pull, at[axis], before, back=True)
    value = pull.value(x, source, (*mask, *inside))
    if not inside:
        return value
    fill = pull.writer.value(number(node["value"], x.dtype))
    return pull.writer.value(f"tl.where({joined(tuple(inside))}, {value}, {fill})")


def _flip(pull: Pull, node: Node, at: Point, mask: Mask) -> str:
    source = list(at)
    for axis in node["axes"]:
        size = pull.writer.dim(node.shape[axis])
        name = pull.writer.value(f"{size} - 1 - {at[axis].text}", prefix="i")
        source[axis] = replace(at[axis], base=name, offset=0)
    return pull.value(node.inputs[0], source, mask)


def _take(pull: Pull, node: Node, at: Point, mask: Mask) -> str:
    x, index = node.inputs
    axis, rank = node["axis"], len(index.shape)
    point = at[axis : axis + rank]
    row = as_index(pull.value(index, point, mask), point)
    return pull.value(x, (*at[:axis], row, *at[axis + rank :]), mask)


def _take_along(pull: Pull, node: Node, at: Point, mask: Mask) -> str:
    x, index = node.inputs
    row = as_index(pull.value(index, at, mask), at)
    return pull.value(x, replaced(at, node["axis"], row), mask)


RULES: dict[str, Callable[[Pull, Node, Point, Mask], str]] = {
    "constant": _constant,
    "iota": _iota,
    "dim_value": _dim_value,
    "reshape": _reshape,
    "transpose": _transpose,
    "broadcast": _broadcast,
    "slice": _slice,
    "concat": _concat,
    "pad": _pad,
    "flip": _flip,
    "take": _take,
    "take_along": _take_along,
}
