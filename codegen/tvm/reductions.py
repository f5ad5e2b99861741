"""Ops with loops of their own along an axis: sums, extremes, argmax, what runs along it, order,
scatter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...ir.dims import Shape
from ...ir.node import Node
from .elementwise import EMIT
from .isa import LANES
from .loops import Place, Work, along, nest
from .values import COMPUTED, Expr, bind, cast, const, i64, vectorized

Fold = Callable[[Expr, Expr], Expr]

_COMBINE = {
    "reduce_sum": "add",
    "reduce_prod": "mul",
    "reduce_max": "maximum",
    "reduce_min": "minimum",
}


def fold_of(name: str) -> Fold:
    """How two partial results of a reduction combine."""
    return EMIT[_COMBINE[name]]


def neutral(name: str, dtype: str) -> float | int:
    """What a reduction of nothing gives, in a TVM dtype."""
    if name in ("reduce_sum", "reduce_prod"):
        return int(name == "reduce_prod")
    lowest = name == "reduce_max"
    if dtype.startswith("float"):
        return float("-inf") if lowest else float("inf")
    if dtype == "bool":
        return int(not lowest)
    bits = int(dtype.lstrip("uint"))
    if dtype.startswith("u"):
        return 0 if lowest else 2**bits - 1
    return -(2 ** (bits - 1)) if lowest else 2 ** (bits - 1) - 1


def _accumulated(dtype: str) -> str:
    return "uint8" if dtype == "bool" else dtype


def accumulator(dtype: str, lanes: int, value: Expr) -> tirx.Buffer:
    """A small buffer, kept in registers, with every lane set."""
    buffer = T.alloc_buffer((lanes,), _accumulated(dtype))
    with vectorized(lanes) as v:
        T.buffer_store(buffer, cast(value, _accumulated(dtype)), [v])
    return buffer


def _update(buffer: tirx.Buffer, lane: Expr, fold: Fold, value: Expr, dtype: str) -> None:
    total = fold(cast(buffer[lane], dtype), value)
    T.buffer_store(buffer, cast(total, _accumulated(dtype)), [lane])


def across(buffer: tirx.Buffer, fold: Fold, dtype: str) -> Expr:
    """All lanes of an accumulator folded into one value, by halves."""
    lanes = int(buffer.shape[0])
    while lanes > 1:
        lanes //= 2
        with vectorized(lanes) as v:
            _update(buffer, v, fold, cast(buffer[v + lanes], dtype), dtype)
    return bind(cast(buffer[0], dtype))


def _insert(
    at: Sequence[Expr], axes: Sequence[int], inner: Sequence[Expr], keepdims: bool
) -> list[Expr]:
    """The reduced node's input index from the result's index and the loops over the axes."""
    kept = iter([e for i, e in enumerate(at) if i not in axes] if keepdims else at)
    inside = iter(inner)
    rank = len(at) if keepdims else len(at) + len(axes)
    return [next(inside) if i in axes else next(kept) for i in range(rank)]


def reduce(work: Work, node: Node, place: Place, at: list[Expr]) -> None:
    """One element of a reduction whose last axis is reduced: four vectors of partial results,
    then one.
    """
    x, axes, name = node.inputs[0], tuple(node["axes"]), node.op.name
    dtype = COMPUTED[x.dtype]
    fold, zero = fold_of(name), const(neutral(name, dtype), dtype)
    lanes = LANES if not isinstance(x.shape[-1], int) or x.shape[-1] >= LANES else 1
    size = x.shape[-1]
    ways = 4 if isinstance(size, int) and size % (4 * LANES) == 0 and size >= 8 * LANES else 1
    parts = [accumulator(dtype, lanes, zero) for _ in range(ways)]
    single = accumulator(dtype, 1, zero)
    outer = [x.shape[a] for a in axes[:-1]]

    def index(inner: list[Expr], j: Expr) -> list[Expr]:
        return _insert(at, axes, [*inner, j], node["keepdims"])

    with nest(work, tuple(outer)) as (inside, inner):
        if ways > 1:
            _unrolled(inside, x, lambda j: index(inner, j), parts, fold, dtype)
        else:
            _accumulate(inside, x, lambda j: index(inner, j), parts[0], single, fold, dtype)
    for p in parts[1:]:
        with vectorized(lanes) as v:
            _update(parts[0], v, fold, cast(p[v], dtype), dtype)
    total = fold(across(parts[0], fold, dtype), cast(single[0], dtype))
    place.store(at, total)


def _unrolled(
    work: Work,
    x: Node,
    index: Callable[[Expr], list[Expr]],
    parts: list[tirx.Buffer],
    fold: Fold,
    dtype: str,
) -> None:
    step = len(parts) * LANES
    with T.serial(i64(0), i64(int(x.shape[-1]) // step)) as o:
        outer = work.within(o, 0, int(x.shape[-1]) // step)
        for p, part in enumerate(parts):
            with vectorized(LANES) as v:
                j = o * i64(step) + (v + i64(p * LANES))
                _update(part, v, fold, outer.within(v, 0, LANES).pull().value(x, index(j)), dtype)


def _accumulate(
    work: Work,
    x: Node,
    index: Callable[[Expr], list[Expr]],
    lanes: tirx.Buffer,
    single: tirx.Buffer,
    fold: Fold,
    dtype: str,
) -> None:
    size = work.dims.expr(x.shape[-1])
    width = int(lanes.shape[0])
    whole = bind(tirx.floordiv(size, i64(width))) if width > 1 else i64(0)
    if width > 1:
        with T.serial(i64(0), whole) as o:
            outer = work.within(o, 0, whole)
            with vectorized(width) as v:
                value = outer.within(v, 0, width).pull().value(x, index(o * i64(width) + v))
                _update(lanes, v, fold, value, dtype)
    with T.serial(whole * i64(width), size) as j:
        inner = work.within(j, 0, size)
        _update(single, i64(0), fold, inner.pull().value(x, index(j)), dtype)


def reduce_across(work: Work, node: Node, place: Place, prefix: list[Expr], rest: Shape) -> None:
    """A reduction that keeps the last axis: vectors along it, the reduced axes looped inside."""
    x, axes, name = node.inputs[0], tuple(node["axes"]), node.op.name
    dtype = COMPUTED[x.dtype]
    fold, zero = fold_of(name), const(neutral(name, dtype), dtype)
    size = x.shape[-1]
    with nest(work, rest[:-1]) as (outer, before):
        blocks = work.dims.expr(size)
        width = LANES if not isinstance(size, int) or size >= LANES else 1
        whole = tirx.floordiv(blocks, i64(width))

        def block(inner: Work, base: Expr, lanes: int) -> None:
            total = accumulator(dtype, lanes, zero)
            reduced = tuple(x.shape[a] for a in axes)
            with nest(inner, reduced) as (deep, loops), vectorized(lanes) as v:
                at = _insert([*prefix, *before, base + v], axes, loops, node["keepdims"])
                _update(total, v, fold, deep.within(v, 0, lanes).pull().value(x, at), dtype)
            with vectorized(lanes) as v:
                place.store([*prefix, *before, base + v], cast(total[v], dtype))

        with T.serial(i64(0), whole) as o:
            block(outer.within(o, 0, whole), o * i64(width), width)
        if not isinstance(size, int) or size % width:
            with T.serial(whole * i64(width), blocks) as j:
                block(outer.within(j, 0, blocks), j, 1)


def argmax(work: Work, node: Node, place: Place, at: list[Expr]) -> None:
    """One element of argmax: the largest value, then the first index that has it.

    A NaN is not at most the largest, whichever of the two comparing left as that.
    """
    x, axis = node.inputs[0], node["axis"]
    dtype = COMPUTED[x.dtype]
    checked = node["checked"] and x.tensor.is_float
    size = work.dims.expr(x.shape[axis])
    largest = _scan(
        work, x, axis, at, node["keepdims"], "reduce_max", dtype, lambda value, _: value
    )

    def where(value: Expr, j: Expr) -> Expr:
        found = tirx.Select(tirx.EQ(value, largest), j, size)
        return tirx.Select(tirx.LE(value, largest), found, i64(-1)) if checked else found

    first = _scan(work, x, axis, at, node["keepdims"], "reduce_min", "int64", where)
    found = tirx.min(first, size - i64(1))
    if checked:
        infinite = const(float("inf"), dtype)
        inside = tirx.all(tirx.LT(largest, infinite), tirx.GT(largest, const(-float("inf"), dtype)))
        found = tirx.Select(inside, found, i64(-1))
    place.store(at, found)


def _scan(
    work: Work,
    x: Node,
    axis: int,
    at: list[Expr],
    keepdims: bool,
    name: str,
    dtype: str,
    term: Callable[[Expr, Expr], Expr],
) -> Expr:
    fold, zero = fold_of(name), const(neutral(name, dtype), dtype)
    last = axis == len(x.shape) - 1
    lanes = accumulator(dtype, LANES if last else 1, zero)
    single = accumulator(dtype, 1, zero)

    def one(inner: Work, j: Expr, target: tirx.Buffer, lane: Expr) -> None:
        value = inner.pull().value(x, _insert(at, (axis,), [j], keepdims))
        _update(target, lane, fold, term(bind(value), j), dtype)

    size = work.dims.expr(x.shape[axis])
    whole = tirx.floordiv(size, i64(LANES)) if last else i64(0)
    if last:
        with T.serial(i64(0), whole) as o, vectorized(LANES) as v:
            one(work.within(o, 0, whole).within(v, 0, LANES), o * i64(LANES) + v, lanes, v)
    with T.serial(whole * i64(LANES), size) as j:
        one(work.within(j, 0, size), j, single, i64(0))
    return bind(fold(across(lanes, fold, dtype), cast(single[0], dtype)))


def running(work: Work, node: Node, place: Place, prefix: list[Expr], rest: Shape) -> None:
    """cumsum, cumprod, cummax, logcumsumexp along an axis, one after another."""
    x, axis = node.inputs[0], node["axis"]
    dtype, inner_axis = COMPUTED[x.dtype], axis - len(prefix)
    others = tuple(d if i != inner_axis else 1 for i, d in enumerate(rest))
    kind = _RUNNING[node.op.name]
    is_log = node.op.name == "logcumsumexp"
    fold = partial(_log_add, dtype=dtype) if is_log else fold_of(kind)
    with nest(work, others) as (inside, at):
        total = accumulator(dtype, 1, const(neutral(kind, dtype), dtype))
        size = work.dims.expr(x.shape[axis])
        with T.serial(i64(0), size) as j:
            point = [*prefix, *(e if i != inner_axis else j for i, e in enumerate(at))]
            value = inside.within(j, 0, size).pull().value(x, point)
            _update(total, i64(0), fold, bind(value), dtype)
            place.store(point, cast(total[i64(0)], dtype))


def _log_add(a: Expr, b: Expr, *, dtype: str) -> Expr:
    """log(exp(a) + exp(b)), taken from the larger; of equals, which may be infinite, nothing is
    subtracted.
    """
    low, high = bind(EMIT["minimum"](a, b)), bind(EMIT["maximum"](a, b))
    apart = tirx.Select(tirx.EQ(low, high), const(0, dtype), low - high)
    return high + EMIT["log1p"](EMIT["exp"](bind(apart)))


# The reduction that each begins as, and, but for the logarithm, goes on as.
_RUNNING = {
    "cumsum": "reduce_sum",
    "cumprod": "reduce_prod",
    "cummax": "reduce_max",
    "logcumsumexp": "reduce_max",
}


def order(
    work: Work, node: Node, places: tuple[Place, Place], prefix: list[Expr], rest: Shape
) -> None:
    """topk and sort by rank: an element's place is how many stand before it (larger or smaller,
    then by index).
    """
    x, axis = node.inputs[0], node["axis"]
    descending = node["largest"] if node.op.name == "topk" else node["descending"]
    inner_axis = axis - len(prefix)
    others = tuple(d if i != inner_axis else 1 for i, d in enumerate(rest))
    size = work.dims.expr(x.shape[axis])
    limit = work.dims.expr(node["k"]) if node.op.name == "topk" else size
    with nest(work, others) as (inside, at):

        def point(j: Expr) -> list[Expr]:
            return [*prefix, *(e if i != inner_axis else j for i, e in enumerate(at))]

        with T.serial(i64(0), size) as i:
            here = inside.within(i, 0, size)
            mine = bind(here.pull().value(x, point(i)))
            rank = _rank(here, x, axis, point, mine, i, descending=descending)
            with T.If(tirx.LT(rank, limit)), T.Then():
                places[0].store(point(rank), mine)
                places[1].store(point(rank), i)


def _rank(
    work: Work,
    x: Node,
    axis: int,
    point: Callable[[Expr], list[Expr]],
    mine: Expr,
    i: Expr,
    *,
    descending: bool,
) -> Expr:
    """How many elements stand before element i."""
    count = accumulator("int32", LANES, const(0, "int32"))
    single = accumulator("int32", 1, const(0, "int32"))
    before = tirx.GT if descending else tirx.LT
    plus = fold_of("reduce_sum")
    size = work.dims.expr(x.shape[axis])
    whole = tirx.floordiv(size, i64(LANES))

    def term(inner: Work, j: Expr) -> Expr:
        other = bind(inner.pull().value(x, point(j)))
        first = tirx.Or(before(other, mine), tirx.And(tirx.EQ(other, mine), tirx.LT(j, i)))
        return tirx.Select(first, const(1, "int32"), const(0, "int32"))

    with T.serial(i64(0), whole) as o, vectorized(LANES) as v:
        _update(
            count,
            v,
            plus,
            term(work.within(o, 0, whole).within(v, 0, LANES), o * i64(LANES) + v),
            "int32",
        )
    with T.serial(whole * i64(LANES), size) as j:
        _update(single, i64(0), plus, term(work.within(j, 0, size), j), "int32")
    return bind(i64(across(count, plus, "int32") + single[i64(0)]))


def scatter(work: Work, node: Node, place: Place, prefix: list[Expr], rest: Shape) -> None:
    """x copied, then each source element set or added in order of its index."""
    x, index, source = node.inputs
    axis = node["axis"]
    with nest(work, rest[:-1]) as (inside, before):

        def copy(inner: Work, j: Expr) -> None:
            at = [*prefix, *before, j]
            place.store(at, inner.pull().value(x, at))

        along(inside, rest[-1], copy, probed=lambda w, j: w.pull().value(x, [*prefix, *before, j]))
    with nest(work, index.shape[len(prefix) :]) as (inside, inner):
        at = [*prefix, *inner]
        target = [*at[:axis], bind(i64(inside.pull().value(index, at))), *at[axis + 1 :]]
        value = inside.pull().value(source, at)
        if node["reduce"] == "add":
            value = fold_of("reduce_sum")(place.read(target), value)
        place.store(target, value)
