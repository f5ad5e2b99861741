"""Ops that have loops: reductions and scans along axes, orders, scatter.

Where the indices around the axis are scalars, the axis is a block of lanes, or several one after
another. Where they are a block of places, each lane goes along the axis by itself; indices of which
several lanes may be the same place are refused, because each of these would do it again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ...ir.dims import Dim, Shape, product
from ...ir.node import Node
from ..errors import CodegenError, NotRowwise
from .pull import RULES, Pull, as_index, as_value, replaced
from .text import ZERO, Index, Mask, Point, Test, axes_of, divided
from .values import COMPUTED, lowest, number

MOST_LANES = 1 << 14
CHUNK = 1 << 10
FEW = 8
"""Elements along an axis that lanes may go over again and again."""
TILED, DEEP = 64, 128
"""Lanes, and elements along an axis, of a tile where one program does all the work."""
MOST_ORDERED = 128
INFINITE = 'float("inf")'


class TooDear(NotRowwise):
    """A value that lanes would compute again and again; `node` is to be kept whole."""

    def __init__(self, node: Node) -> None:
        super().__init__(f"{node.op.name} : {node.type}")
        self.node = node


def power_of_two(n: int) -> int:
    """The least power of two that is n or more."""
    return 1 << max(n - 1, 0).bit_length()


def lanes_of(pull: Pull, n: int) -> tuple[Index, Test]:
    """A block of n places, filled up to a power of two, and which of its lanes are among them."""
    wide = power_of_two(n)
    name = pull.writer.value(f"tl.arange(0, {wide})", prefix="l")
    index = Index(name, 0, frozenset({f"lanes{wide}"}))
    return index, Test(pull.writer.value(f"{name} < {n}", prefix="m"), index.axes)


def unflattened(pull: Pull, flat: Index, shape: Shape) -> list[Index]:
    """The place on each axis of the element that is `flat` in row-major order."""
    found: list[Index] = []
    for axis, d in enumerate(shape):
        part = divided(flat, product(shape[axis + 1 :]), pull.writer, rest=False)
        found.append(part if axis == 0 else divided(part, d, pull.writer, rest=True))
    return found


@dataclass(frozen=True)
class _Fold:
    """How a reduction begins, goes on, and joins the lanes of a block."""

    start: Callable[[str], str]
    step: Callable[[str, str], str]
    across: Callable[..., str]


def _lowest(dtype: str) -> str:
    return lowest(dtype)


def _highest(dtype: str) -> str:
    return lowest(dtype, highest=True)


def _across(name: str) -> Callable[..., str]:
    return lambda v, axis=0: f"tl.{name}({v}, axis={axis})"


_FOLDS = {
    "reduce_sum": _Fold(
        lambda dtype: number(0, dtype),
        lambda a, b: f"{a} + {b}",
        _across("sum"),
    ),
    "reduce_max": _Fold(_lowest, lambda a, b: f"tl.maximum({a}, {b})", _across("max")),
    "reduce_min": _Fold(
        _highest,
        lambda a, b: f"tl.minimum({a}, {b})",
        _across("min"),
    ),
    "reduce_prod": _Fold(
        lambda dtype: number(1, dtype),
        lambda a, b: f"{a} * {b}",
        lambda v, axis=0: f"tl.reduce({v}, {axis}, multiplied)",
    ),
}


def _reduction(pull: Pull, node: Node, at: Point, mask: Mask) -> str:
    x, axes = node.inputs[0], node["axes"]
    at = _without_kept(node, at)
    dtype = "i32" if x.dtype == "bool" else x.dtype
    fold, extents = _FOLDS[node.op.name], tuple(x.shape[a] for a in axes)
    count = product(extents)

    def element(flat: Index, inside: Mask, at: Point = at, mask: Mask = mask) -> str:
        point = _inserted(at, axes, unflattened(pull, flat, extents))
        value = pull.value(x, point, (*mask, *inside))
        return f"{value}.to(tl.int32)" if x.dtype == "bool" else value

    if pull.tiles and axes_of(at) and not (isinstance(count, int) and count <= FEW):
        down = lambda flat, inside: element(flat, inside, *_upright(at, mask))  # noqa: E731
        result = _tiled(pull, at, count, fold, dtype, down)
    else:
        result = _folded(pull, node, at, count, fold, dtype, element)
    if x.dtype == "bool":
        return pull.writer.value(f"{result} != 0")
    return pull.writer.value(f"{result}.to({COMPUTED[node.dtype]})")


def _without_kept(node: Node, at: Point) -> Point:
    if not node.attributes.get("keepdims"):
        return at
    axes = node["axes"] if "axes" in node.attributes else (node["axis"],)
    return tuple(i for axis, i in enumerate(at) if axis not in axes)


def _inserted(at: Point, axes: tuple[int, ...], places: list[Index]) -> Point:
    """The index with places on these axes of the result between its own."""
    left, found = iter(at), dict(zip(axes, places, strict=True))
    rank = len(at) + len(axes)
    return tuple(found[a] if a in found else next(left) for a in range(rank))


Element = Callable[[Index, Mask], str]


def _folded(
    pull: Pull, node: Node, at: Point, count: Dim, fold: _Fold, dtype: str, element: Element
) -> str:
    writer = pull.writer
    if axes_of(at):
        refuse_repeated(node, at, count)
        start = spread(pull, at, writer.value(fold.start(dtype)))
        return _one_by_one(pull, count, start, fold, element)
    start = writer.value(fold.start(dtype))
    if isinstance(count, int) and count <= MOST_LANES:
        lanes, inside = lanes_of(pull, count)
        value = element(lanes, (inside,))
        kept = writer.value(f"tl.where({inside.name}, {value}, {start})")
        return writer.value(fold.across(kept))
    total = writer.name("t")
    writer.line(f"{total} = tl.full([{CHUNK}], 0, {COMPUTED[dtype]}) + {start}")
    with chunks(pull, count) as (lanes, inside):
        value = element(lanes, (inside,))
        kept = writer.value(f"tl.where({inside.name}, {value}, {start})")
        writer.line(f"{total} = {fold.step(total, kept)}")
    return writer.value(fold.across(total), key=(total, "across"))


def _one_by_one(pull: Pull, count: Dim, start: str, fold: _Fold, element: Element) -> str:
    writer = pull.writer
    total, place = writer.name("t"), writer.name("k")
    writer.line(f"{total} = {start}")
    with writer.block(f"for {place} in range({writer.dim(count)}):"):
        value = element(Index(place), ())
        writer.line(f"{total} = {fold.step(total, value)}")
    return total


def _upright(at: Point, mask: Mask) -> tuple[Point, Mask]:
    """A block of indices and what holds of them as the rows of a tile."""
    axes = frozenset({"down"})
    turned = tuple(replace(i, base=f"{i.base}[:, None]", axes=axes) if i.axes else i for i in at)
    tests = tuple(
        Test(f"{t.name}[:, None]", axes, t.part_of and f"{t.part_of}[:, None]") if t.axes else t
        for t in mask
    )
    return turned, tests


def _tiled(pull: Pull, at: Point, count: Dim, fold: _Fold, dtype: str, element: Element) -> str:
    """Each lane's fold of its own elements, DEEP of them at a time: neighbours lie side by side."""
    writer = pull.writer
    deep = min(DEEP, power_of_two(count)) if isinstance(count, int) else DEEP
    wide = next(int(a.removeprefix("lanes")) for i in at for a in i.axes)
    start, total, first = writer.value(fold.start(dtype)), writer.name("t"), writer.name("k")
    writer.line(f"{total} = tl.full([{wide}, {deep}], 0, {COMPUTED[dtype]}) + {start}")
    with writer.block(f"for {first} in range(0, {writer.dim(count)}, {deep}):"):
        name = writer.value(f"({first} + tl.arange(0, {deep}))[None, :]", prefix="l")
        across = Index(name, 0, frozenset({"across"}))
        inside = pull.test(across, "<", count)
        value = element(across, (inside,))
        kept = writer.value(f"tl.where({inside.name}, {value}, {start})")
        writer.line(f"{total} = {fold.step(total, kept)}")
    return writer.value(fold.across(total, axis=1), key=(total, "across"))


def refuse_repeated(node: Node, at: Point, count: Dim) -> None:
    """Raise TooDear where lanes that may be at the same place would go along a long axis."""
    if (not isinstance(count, int) or count > FEW) and not all(i.plain for i in at):
        raise TooDear(node)


def spread(pull: Pull, at: Point, value: str) -> str:
    """A value in every lane of the block that indices make."""
    blocks = [i.base for i in at if i.axes]
    if not blocks:
        return value
    zero = pull.writer.value(f"({' + '.join(blocks)}) * 0", prefix="z")
    return pull.writer.value(f"tl.where({zero} == 0, {value}, {value})")


class chunks:
    """A loop over blocks of CHUNK places of a long axis: gives the places, and which are there."""

    def __init__(self, pull: Pull, count: Dim) -> None:
        self.pull, self.count = pull, count
        self.first = pull.writer.name("k")
        size = pull.writer.dim(count)
        self._block = pull.writer.block(f"for {self.first} in range(0, {size}, {CHUNK}):")

    def __enter__(self) -> tuple[Index, Test]:
        self._block.__enter__()
        writer = self.pull.writer
        name = writer.value(f"{self.first} + tl.arange(0, {CHUNK})", prefix="l")
        lanes = Index(name, 0, frozenset({f"lanes{CHUNK}"}))
        return lanes, self.pull.test(lanes, "<", self.count)

    def __exit__(self, *error: object) -> None:
        self._block.__exit__(None, None, None)


# -- the place of the largest


def _argmax(pull: Pull, node: Node, at: Point, mask: Mask) -> str:
    x, axis = node.inputs[0], node["axis"]
    at, writer = _without_kept(node, at), pull.writer
    count = x.shape[axis]
    start = writer.value(lowest(x.dtype))
    checked = node["checked"] and x.tensor.is_float

    def element(flat: Index, inside: Mask) -> str:
        value = pull.value(x, _inserted(at, (axis,), [flat]), (*mask, *inside))
        # A NaN is taken for an infinity, which is the largest for sure.
        return f"tl.where({value} == {value}, {value}, {INFINITE})" if checked else value

    def found(where: str, largest: str) -> str:
        if checked:
            where = f"tl.where(tl.abs({largest}) < {INFINITE}, {where}, -1)"
        return f"{where}.to(tl.int64)"

    best, where = writer.name("t"), writer.name("t")
    if axes_of(at):
        refuse_repeated(node, at, count)
        place = writer.name("k")
        writer.line(f"{best} = {spread(pull, at, start)}")
        writer.line(f"{where} = {spread(pull, at, writer.value('tl.full([], 0, tl.int32)'))}")
        with writer.block(f"for {place} in range({writer.dim(count)}):"):
            value = writer.value(element(Index(place), ()))
            writer.line(f"{where} = tl.where({value} > {best}, {place}, {where})")
            writer.line(f"{best} = tl.maximum({best}, {value})")
        return writer.value(found(where, best))
    if isinstance(count, int) and count <= MOST_LANES:
        lanes, inside = lanes_of(pull, count)
        kept = writer.value(f"tl.where({inside.name}, {element(lanes, (inside,))}, {start})")
        return writer.value(found(f"tl.argmax({kept}, axis=0)", f"tl.max({kept}, axis=0)"))
    writer.line(f"{best} = tl.full([{CHUNK}], 0, {COMPUTED[x.dtype]}) + {start}")
    writer.line(f"{where} = tl.full([{CHUNK}], 0, tl.int32)")
    with chunks(pull, count) as (lanes, inside):
        kept = writer.value(f"tl.where({inside.name}, {element(lanes, (inside,))}, {start})")
        writer.line(f"{where} = tl.where({kept} > {best}, {lanes.text}, {where})")
        writer.line(f"{best} = tl.maximum({best}, {kept})")
    largest = writer.value(f"tl.max({best}, axis=0)", key=(best, "largest"))
    first = f"tl.min(tl.where({best} == {largest}, {where}, 2147483647), axis=0)"
    return writer.value(found(first, largest), key=(best, "first"))


# -- orders


def _item(pull: Pull, node: Node, at: Point, mask: Mask) -> str:
    """One result of topk or sort, at any place in the order."""
    order, which = node.inputs[0], node["index"]
    if order.op.name not in ("topk", "sort"):
        raise CodegenError(f"item of {order.op.name} has no value by index in a kernel")
    axis = order["axis"]
    around = (*at[:axis], *at[axis + 1 :])
    if axes_of(around):
        raise TooDear(node)
    ordered = _ordered(pull, order, around, mask)
    place = at[axis]
    if place.is_number:
        return ordered[place.offset][which]
    result = ordered[-1][which]
    for j in range(len(ordered) - 2, -1, -1):
        result = pull.writer.value(f"tl.where({place.text} == {j}, {ordered[j][which]}, {result})")
    return result


def _ordered(pull: Pull, order: Node, around: Point, mask: Mask) -> list[tuple[str, str]]:
    """The values in order and their places, as scalars; the first of equals comes first."""
    x, axis = order.inputs[0], order["axis"]
    count = x.shape[axis]
    wanted = order["k"] if order.op.name == "topk" else count
    down = order["largest"] if order.op.name == "topk" else order["descending"]
    if not isinstance(count, int) or count > MOST_LANES or wanted > MOST_ORDERED:
        raise CodegenError(
            f"{order.op.name} of {wanted} among {count}: at most {MOST_ORDERED} of {MOST_LANES}"
        )
    writer = pull.writer
    lanes, inside = lanes_of(pull, count)
    value = pull.value(x, _inserted(around, (axis,), [lanes]), (*mask, inside))
    value = writer.value(f"tl.where({inside.name}, {value}, {value})", key=(order, around, "all"))
    worst = writer.value(lowest(x.dtype, highest=not down))
    found: list[tuple[str, str]] = []
    free = inside.name
    for j in range(wanted):
        left = writer.value(f"tl.where({free}, {value}, {worst})")
        best = writer.value(f"tl.{'max' if down else 'min'}({left}, axis=0)")
        there = f"{free} & ({value} == {best})"
        first = writer.value(f"tl.min(tl.where({there}, {lanes.text}, {count - 1}), axis=0)")
        found.append((best, writer.value(f"{first}.to(tl.int64)")))
        if j + 1 < wanted:
            free = writer.value(f"{free} & ({lanes.text} != {first})", prefix="m")
    return found


# -- scans and scatters


def _running(pull: Pull, node: Node, at: Point, mask: Mask) -> str:
    """cumsum, cumprod, cummax, logcumsumexp."""
    x, axis = node.inputs[0], node["axis"]
    count, writer, fold = x.shape[axis], pull.writer, _RUNNING[node.op.name]
    around = (*at[:axis], *at[axis + 1 :])
    if isinstance(count, int) and count <= MOST_LANES and not axes_of(around):
        lanes, inside = lanes_of(pull, count)
        if at[axis] == lanes:
            # Lanes behind the last come after all others: what they hold is of no matter.
            value = pull.value(x, replaced(at, axis, lanes), (*mask, inside))
            kept = writer.value(f"tl.where({inside.name}, {value}, {value} * 0)")
            return writer.value(f"{fold.across(kept)}.to({COMPUTED[node.dtype]})")
    refuse_repeated(node, at, count)
    total, place = writer.name("t"), writer.name("k")
    writer.line(f"{total} = {spread(pull, at, writer.value(fold.start(x.dtype)))}")
    with writer.block(f"for {place} in range({writer.dim(count)}):"):
        value = pull.value(x, replaced(at, axis, Index(place)), mask)
        more = fold.step(total, value)
        writer.line(f"{total} = tl.where({place} <= {at[axis].text}, {more}, {total})")
    return total


def _scanned(name: str) -> _Fold:
    """What runs along an axis by a function of templates/mathematics.py."""
    return _Fold(
        lambda dtype: number(1, dtype) if name == "multiplied" else lowest(dtype),
        lambda a, b: f"{name}({a}, {b})",
        lambda v: f"tl.associative_scan({v}, 0, {name})",
    )


_RUNNING = {
    "cumsum": _Fold(
        lambda dtype: number(0, dtype),
        lambda a, b: f"{a} + {b}",
        lambda v: f"tl.cumsum({v}, axis=0)",
    ),
    "cumprod": _scanned("multiplied"),
    "cummax": _scanned("larger"),
    "logcumsumexp": _scanned("log_added"),
}


def _scatter(pull: Pull, node: Node, at: Point, mask: Mask) -> str:
    """Each element looks through the indices of its line for its own place."""
    x, index, source = node.inputs
    axis, writer = node["axis"], pull.writer
    refuse_repeated(node, (*at[:axis], ZERO, *at[axis + 1 :]), index.shape[axis])
    total, place = writer.name("t"), writer.name("k")
    mine = as_value(pull, at[axis], index.dtype)
    writer.line(f"{total} = {spread(pull, at, pull.value(x, at, mask))}")
    with writer.block(f"for {place} in range({writer.dim(index.shape[axis])}):"):
        point = replaced(at, axis, Index(place))
        hit = writer.value(f"{pull.value(index, point, mask)} == {mine}")
        value = pull.value(source, point, mask)
        value = f"{total} + {value}" if node["reduce"] == "add" else value
        writer.line(f"{total} = tl.where({hit}, {value}, {total})")
    return total


LOOPS = {
    "reduce_sum": _reduction,
    "reduce_max": _reduction,
    "reduce_min": _reduction,
    "reduce_prod": _reduction,
    "argmax": _argmax,
    "item": _item,
    "cumsum": _running,
    "cumprod": _running,
    "cummax": _running,
    "logcumsumexp": _running,
    "scatter": _scatter,
}
RULES.update(LOOPS)

__all__ = ["LOOPS", "MOST_LANES", "TooDear", "as_index", "lanes_of", "power_of_two", "unflattened"]
