"""Contractions without a packed weight: batched matmul and one-dimensional convolution, float32
sums.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...ir.dims import product
from ...ir.node import Node
from ..errors import NotRowwise
from .isa import LANES
from .loops import Place, Work, nest, over_rows
from .reductions import accumulator, across, fold_of
from .values import COMPUTED, Expr, bind, cast, const, i64, vectorized

ROWS = 4
"""Rows of the result that share a pass over y's columns."""


def _sum_dtype(dtype: str) -> str:
    return "int32" if dtype in ("int8", "uint8", "int16") else dtype


def matmul(work: Work, node: Node, places: list[Place], prefix: list[Expr]) -> None:
    """x @ y over the last two axes: by dot products where y is a transpose, by vectors of
    columns otherwise.
    """
    rest = node.shape[len(prefix) :]
    if len(rest) < 1:
        raise NotRowwise
    inner = node.inputs[0].shape[-1]
    cost = (
        inner * rest[-1] // 16 if isinstance(inner, int) and isinstance(rest[-1], int) else 1 << 20
    )
    emit = _dots if _is_transposed(node.inputs[1]) else _columns

    def row(inside: Work, at: list[Expr]) -> None:
        emit(inside, node, places[0], [*prefix, *at])

    if work.parallel:
        over_rows(work, rest[:-1], cost, row)
        return
    with nest(work, rest[:-1]) as (inside, at):
        row(inside, at)


def _is_transposed(y: Node) -> bool:
    if y.op.name != "transpose":
        return False
    rank = len(y.shape)
    return y["permutation"][-2:] in ((rank - 1, rank - 2),) or y["permutation"][-2] == rank - 1


def _operand(node: Node, which: int, batch: list[Expr], tail: list[Expr]) -> list[Expr]:
    x = node.inputs[which]
    skip = len(batch) - (len(x.shape) - 2)
    kept = [i64(0) if d == 1 else e for d, e in zip(x.shape[:-2], batch[skip:], strict=True)]
    return [*kept, *tail]


def _add(total: tirx.Buffer, lane: Expr, x: Expr, y: Expr, dtype: str) -> None:
    T.buffer_store(total, total[lane] + cast(x, dtype) * cast(y, dtype), [lane])


def _columns(work: Work, node: Node, place: Place, row: list[Expr]) -> None:
    """One row of the result, a vector of columns at a time."""
    *batch, i = row
    dtype = _sum_dtype(COMPUTED[node.dtype])
    size, depth = work.dims.expr(node.shape[-1]), node.inputs[0].shape[-1]

    def block(inside: Work, base: Expr, lanes: int) -> None:
        total = accumulator(dtype, lanes, const(0, dtype))
        with nest(inside, (depth,)) as (deep, (k,)):
            x = bind(deep.pull().value(node.inputs[0], _operand(node, 0, batch, [i, k])))
            with vectorized(lanes) as v:
                at = _operand(node, 1, batch, [k, base + v])
                _add(total, v, x, deep.within(v, 0, lanes).pull().value(node.inputs[1], at), dtype)
        with vectorized(lanes) as v:
            place.store([*row, base + v], cast(total[v], COMPUTED[node.dtype]))

    _blocks(work, size, block)


def _blocks(work: Work, size: Expr, block: Callable[[Work, Expr, int], None]) -> None:
    whole = bind(tirx.floordiv(size, i64(LANES)))
    with T.serial(i64(0), whole) as o:
        block(work.within(o, 0, whole), o * i64(LANES), LANES)
    with T.serial(whole * i64(LANES), size) as j:
        block(work.within(j, 0, size), j, 1)


def _dots(work: Work, node: Node, place: Place, row: list[Expr]) -> None:
    """One row of the result, a dot product along contiguous k for each column."""
    *batch, i = row
    dtype = _sum_dtype(COMPUTED[node.dtype])
    depth = work.dims.expr(node.inputs[0].shape[-1])
    with nest(work, (node.shape[-1],)) as (inside, (j,)):
        total = accumulator(dtype, LANES, const(0, dtype))
        single = accumulator(dtype, 1, const(0, dtype))

        def term(deep: Work, k: Expr, target: tirx.Buffer, lane: Expr) -> None:
            pull = deep.pull()
            x = pull.value(node.inputs[0], _operand(node, 0, batch, [i, k]))
            _add(
                target, lane, x, pull.value(node.inputs[1], _operand(node, 1, batch, [k, j])), dtype
            )

        whole = bind(tirx.floordiv(depth, i64(LANES)))
        with T.serial(i64(0), whole) as o, vectorized(LANES) as v:
            term(inside.within(o, 0, whole).within(v, 0, LANES), o * i64(LANES) + v, total, v)
        with T.serial(whole * i64(LANES), depth) as k:
            term(inside.within(k, 0, depth), k, single, i64(0))
        result = across(total, fold_of("reduce_sum"), dtype) + single[i64(0)]
        place.store([*row, j], cast(result, COMPUTED[node.dtype]))


def conv1d(work: Work, node: Node, places: list[Place], prefix: list[Expr]) -> None:
    """Cross-correlation: each element of the result sums over its group's channels and the taps
    inside the input.
    """
    if len(prefix) > 2:
        raise NotRowwise
    shape = node.shape
    cost = product(node.inputs[1].shape[1:])
    cost = cost if isinstance(cost, int) else 1 << 16

    def row(inside: Work, at: list[Expr]) -> None:
        with nest(inside, shape[2:]) as (deep, (position,)):
            _conv_element(deep, node, places[0], [*prefix, *at], position)

    rest = shape[len(prefix) : 2]
    if work.parallel:
        over_rows(work, rest, cost, row)
        return
    with nest(work, rest) as (inside, at):
        row(inside, at)


def _conv_element(work: Work, node: Node, place: Place, row: list[Expr], position: Expr) -> None:
    x, w = node.inputs[:2]
    dtype = COMPUTED[node.dtype]
    batch, channel = row
    per_group = work.dims.expr(w.shape[1])
    outputs = work.dims.expr(w.shape[0])
    group = (
        bind(tirx.floordiv(channel * i64(node["groups"]), outputs))
        if node["groups"] > 1
        else i64(0)
    )
    bias = work.pull().value(node.inputs[2], [channel]) if len(node.inputs) > 2 else const(0, dtype)
    total = accumulator(dtype, 1, bias)
    with nest(work, w.shape[1:]) as (deep, (c, tap)):
        start = position * i64(node["stride"]) + tap * i64(node["dilation"]) - i64(node["padding"])
        start = bind(start)
        inside = tirx.And(tirx.GE(start, i64(0)), tirx.LT(start, work.dims.expr(x.shape[2])))
        with T.If(inside), T.Then():
            pull = deep.pull()
            value = pull.value(x, [batch, group * per_group + c, start])
            _add(total, i64(0), value, pull.value(w, [channel, c, tap]), dtype)
    place.store([*row, position], total[i64(0)])
