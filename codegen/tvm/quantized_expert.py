"""The expert template over quantized weights: each row by the codes of its expert, summed as the
quantized linears sum.

The codes of all experts are seen as one weight whose blocks of columns follow one another, expert
after expert.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...ir.dims import product
from ...ir.node import Node
from ...ir.ops.quantized import operands
from ..backend import Layout
from .expert import store_block
from .function import Anchor, Kernel
from .group_steps import fresh_vector
from .isa import LANES
from .linear import Linear, Scheme, Sums
from .loops import Place, Work, flat_index
from .quantized import INTEGER, QUANTIZED, integer_scheme, wide_operand, wide_scheme
from .values import Expr, bind, const, i64


def _with_index(kernel: Kernel, node: Node, needed: Mapping[Node, str]) -> dict[Node, str]:
    index = operands(node).experts
    assert index is not None, node
    return {**needed, **({} if index in kernel.places else {index: index.dtype})}


def emit_wide(kernel: Kernel, node: Node, results: Mapping[Node, Place]) -> None:
    """Emit a packed_quantized_expert_linear."""
    _emit(kernel, node, wide_operand(node), results, wide_scheme(kernel, node))


def emit_integer(kernel: Kernel, node: Node, results: Mapping[Node, Place]) -> None:
    """Emit a packed_integer_expert_linear."""
    _emit(kernel, node, node.inputs[0], results, integer_scheme(kernel, node))


def _emit(
    kernel: Kernel, node: Node, x: Node, results: Mapping[Node, Place], scheme: Scheme
) -> None:
    """Column blocks go to the threads, and each thread goes through the rows."""
    place = results[node] if node in results else kernel.scratch(node)
    columns, layout = int(node["n"]), Layout.parse(node["layout"])
    linear = Linear(
        _over_all_experts(kernel, node), node, x, layout, {node: place}, (0,), columns, scheme
    )
    tile = scheme.tiles[0]
    blocks = -(-columns // LANES)
    tile = replace(tile, columns=min(tile.columns, blocks))
    rows = kernel.dims.expr(product(node.shape[:-1]))
    work = kernel.work()
    with (
        T.parallel(i64(0), i64(-(-blocks // tile.columns))) as group,
        T.serial(i64(0), rows) as r,
    ):
        at = flat_index(work, r, node.shape[:-1])
        _row(linear, work, tile.columns, group, at)
    kernel.places[node] = place


def _over_all_experts(kernel: Kernel, node: Node) -> Kernel:
    """The kernel as a linear sees it: the axes of experts and of blocks of columns are one."""
    found = operands(node)
    places = dict(kernel.places)
    for weight in (found.codes, found.scale, found.zeros):
        if weight is not None:
            experts, blocks, *rest = places[weight].buffer.shape
            places[weight] = kernel.view_of(places[weight], [experts * blocks, *rest])
    return replace(kernel, places=places)


def _row(linear: Linear, work: Work, columns: int, group: Expr, at: list[Expr]) -> None:
    """The blocks of one group of columns for one row."""
    node, kernel = linear.node, linear.kernel
    index = operands(node).experts
    assert index is not None, node
    expert = bind(i64(kernel.places[index].read(at)))
    blocks = -(-linear.columns // LANES)
    own = [bind(tirx.min(group * i64(columns) + i64(c), i64(blocks - 1))) for c in range(columns)]
    tile = replace(linear.scheme.tiles[0], columns=columns)
    none = T.broadcast(const(0, "float32"), LANES)
    sums = Sums({(0, 0, c): [fresh_vector("float32", none)] for c in range(columns)})
    inside = [bind(expert * i64(blocks) + b) for b in own]
    linear.scheme.over_depth(linear, tile, sums, inside, [at])
    bias = operands(node).bias
    for c, block in enumerate(own):
        total = sums.joined((0, 0, c))
        store_block(work, node, linear.results[node], total, bias, (expert, block), at)


QUANTIZED_EXPERT = Anchor(
    lambda kernel, node: _with_index(kernel, node, QUANTIZED.needs(kernel, node)), emit_wide
)
INTEGER_EXPERT = Anchor(
    lambda kernel, node: _with_index(kernel, node, INTEGER.needs(kernel, node)), emit_integer
)
