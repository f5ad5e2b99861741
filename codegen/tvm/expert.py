"""The expert template: y[r] = w[index[r]] x[r] (+ b[index[r]]), reading the weights of chosen
experts alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...ir.dims import product
from ...ir.node import Node
from ...ir.target import Target
from ..backend import Layout
from ..errors import CodegenError
from ..space import Bucket, Choice, Sample, Space
from .floats import operand
from .function import Anchor, Kernel
from .isa import DOT_BF16, LANES
from .linear import load_vector
from .loops import Place, Work, flat_index
from .values import Expr, bind, cast, const, i64, vectorized

ANY = Bucket("1-", 1, None, (Sample(1), Sample(64)))
UNROLLS = (1, 2, 4, 6, 8)


@dataclass(frozen=True)
class Sums:
    """Partial sums over k of sixteen columns."""

    unroll: int = 4


def _needs(kernel: Kernel, node: Node) -> dict[Node, str]:
    layout = Layout.parse(node["layout"])
    wide = "f64" if node.dtype == "f64" else "f32"
    needed = {operand(kernel, node): "bf16" if layout.depth == 2 else wide}
    index = node.inputs[2]
    return needed if index in kernel.places else {**needed, index: index.dtype}


def emit_expert(kernel: Kernel, node: Node, results: Mapping[Node, Place]) -> None:
    """Emit a packed_expert_linear: column blocks go to the threads, and each thread goes through
    the rows.
    """
    layout = Layout.parse(node["layout"])
    if layout.columns != LANES or layout.depth not in (1, 2):
        raise CodegenError(
            f"packed_expert_linear: layout {node['layout']!r}; the CPU templates know n16 and n16k2"
        )
    if layout.depth == 2:
        kernel.snippets.add(DOT_BF16)
    place = results[node] if node in results else kernel.scratch(node)
    columns = int(node["n"])
    rows = kernel.dims.expr(product(node.shape[:-1]))
    work = kernel.work()
    with T.parallel(i64(0), i64(-(-columns // LANES))) as block, T.serial(i64(0), rows) as r:
        at = flat_index(work, r, node.shape[:-1])
        _element_block(kernel, work, node, layout, place, block, at)
    kernel.places[node] = place


def _element_block(
    kernel: Kernel,
    work: Work,
    node: Node,
    layout: Layout,
    place: Place,
    block: Expr,
    at: list[Expr],
) -> None:
    """Sixteen columns of one row."""
    dtype = "float64" if node.dtype == "f64" else "float32"
    expert = bind(i64(kernel.places[node.inputs[2]].read(at)))
    depth = -(-int(node.inputs[0].shape[-1]) // layout.depth)
    unroll = kernel.chosen(ANY.name, Sums()).unroll
    sums = [_zeros(dtype) for _ in range(unroll)]
    whole, rest = divmod(depth, unroll)
    if whole:
        with T.serial(i64(0), i64(whole)) as k:
            for u, total in enumerate(sums):
                _step(
                    kernel,
                    node,
                    layout,
                    total,
                    (expert, block, k * i64(unroll) + i64(u)),
                    at,
                    dtype,
                )
    for u in range(rest):
        _step(kernel, node, layout, sums[u], (expert, block, i64(whole * unroll + u)), at, dtype)
    for more in sums[1:]:
        with vectorized(LANES) as v:
            T.buffer_store(sums[0], sums[0][v] + more[v], [v])
    bias = node.inputs[3] if len(node.inputs) > 3 else None
    store_block(work, node, place, sums[0], bias, (expert, block), at)


def _zeros(dtype: str) -> tirx.Buffer:
    buffer = T.alloc_buffer((LANES,), dtype)
    with vectorized(LANES) as v:
        T.buffer_store(buffer, const(0, dtype), [v])
    return buffer


def _step(
    kernel: Kernel,
    node: Node,
    layout: Layout,
    total: tirx.Buffer,
    where: tuple[Expr, Expr, Expr],
    at: list[Expr],
    dtype: str,
) -> None:
    expert, block, k = where
    x, w = kernel.places[operand(kernel, node)], kernel.places[node.inputs[1]]
    lanes = T.ramp(0, 1, LANES)
    if layout.depth == 2:
        pair = tirx.op.reinterpret("int32", x.buffer[(*at, T.ramp(k * i64(2), i64(1), 2))])
        bits = w.buffer[(expert, block, k, i64(0), T.ramp(i64(0), i64(1), 2 * LANES))]
        pairs = tirx.op.reinterpret("int16x32", T.broadcast(bind(pair), LANES))
        weights = tirx.op.reinterpret("int16x32", bits)
        T.buffer_store(
            total,
            T.call_extern("float32x16", "ferrule_dot_bf16", total[lanes], weights, pairs),
            [lanes],
        )
        return
    value = T.broadcast(cast(x.read([*at, k]), dtype), LANES)
    T.buffer_store(total, total[lanes] + value * load_vector(w, (expert, block, k), dtype), [lanes])


def store_block(
    work: Work,
    node: Node,
    place: Place,
    total: tirx.Buffer,
    bias: Node | None,
    where: tuple[Expr, Expr],
    at: list[Expr],
) -> None:
    """Sixteen sums of a row (or as many as are left of the columns), with the expert's bias; where
    is the expert and the block of columns.
    """
    expert, block = where
    dtype = str(total.dtype)
    columns = int(node["n"])
    base = bind(block * i64(LANES))

    def element(lane: Expr, sums: tirx.Buffer = total) -> None:
        value: Expr = sums[lane]
        if bias is not None:
            value = value + cast(work.pull().value(bias, [expert, base + lane]), dtype)
        place.store([*at, base + lane], value)

    def vector() -> None:
        with vectorized(LANES) as v:
            element(v)

    if columns % LANES == 0:
        return vector()
    with T.If(tirx.LE(base + i64(LANES), i64(columns))):
        with T.Then():
            vector()
        with T.Else():
            copy = _zeros(dtype)
            with vectorized(LANES) as v:
                T.buffer_store(copy, total[v], [v])
            with T.serial(i64(0), i64(columns % LANES)) as lane:
                element(lane, copy)


def _spaces(node: Node, target: Target) -> tuple[Space, ...]:
    dtype = "bf16" if Layout.parse(node["layout"]).depth == 2 else "f32"
    default, values = Choice.of({"unroll": Sums().unroll}), {"unroll": UNROLLS}
    return (Space(ANY, product(node.shape[:-1]), default, values, dtype=dtype),)


EXPERT = Anchor(_needs, emit_expert, _spaces)
