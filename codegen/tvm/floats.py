"""The linear template over float weights: float32 sums, or sums of pairs by the bfloat16 dot
instruction.

Weights lie k after k (n16), or pairs of k after one another for the dot instruction (n16k2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...ir.node import Node
from ...ir.ops import tensor as t
from ...ir.target import Target
from ..backend import Layout
from ..errors import CodegenError
from ..space import Space
from . import amx
from .float_panels import SIZES, emit_float_panels, panel_of
from .function import Anchor, Kernel
from .isa import DOT_BF16, LANES, Isa, Tile, isa_of
from .linear import Linear, Many, Scheme, Sums, Tiling
from .loops import Place
from .panels import Steps
from .register_tiles import emit_scheme, widened
from .row_tiles import tile_spaces
from .streams import read_weights
from .tiled_rows import emit_whole
from .tiles import plain
from .values import Expr, bind, cast, i64

PANELS_ABOVE, PANELS_FROM = {32: 32, 64: 96}, {32: 12, 64: None}
"""By the bytes of a vector, rows up to which widening weights in registers, tile by tile, costs no
more than laying them out, and rows of an expert, in the mean, from which it costs more. On Zen 4,
512 rows laid out take 0.95 of the time by AVX-512, 64 rows 1.04, 64 rows of each of 16 experts 1.10
and by AVX2 0.58. Weights of float32 leave nothing to widen: 1.1 to 1.2.
"""
TILED_FROM = 2
"""Rows of an expert, in the mean, from which tile registers do them."""


def operand(node: Node, x: Node | None = None) -> Node:
    """x as the kernel reads it (the node's own, if none is given): for the dot instruction an odd K
    gets a zero at the end.
    """
    x = node.inputs[0] if x is None else x
    layout = Layout.parse(node["layout"])
    if int(x.shape[-1]) % layout.depth == 0:
        return x
    after = (0,) * (len(x.shape) - 1) + (layout.depth - int(x.shape[-1]) % layout.depth,)
    return t.pad(x, before=(0,) * len(x.shape), after=after, value=0.0)


def _needs(kernel: Kernel, node: Node) -> dict[Node, str]:
    layout = Layout.parse(node["layout"])
    x = operand(node)
    if layout.depth == 2:
        return {x: "bf16"}
    if x in kernel.places and x.dtype in ("bf16", "f16"):
        # Widened once, not for each group of columns.
        return {_widened(x): "f32"}
    return {x: "f64" if node.dtype == "f64" else "f32"}


def _widened(x: Node) -> Node:
    return t.cast(x, dtype="f32")


def emit_linear(kernel: Kernel, node: Node, results: Mapping[Node, Place]) -> None:
    """Emit a packed_linear and, where they can be computed from its accumulators, the results
    behind it.
    """
    layout, scheme = Layout.parse(node["layout"]), float_scheme(kernel, node)
    isa, x = kernel.isa, operand(node)
    # A second tile of a few rows leaves less of itself empty than one of many.
    twice = isa.few.rows < isa.many.rows < 2 * isa.few.rows
    some = (2 * isa.few.rows, isa.few) if twice else None
    x = wide if layout.depth == 1 and (wide := _widened(x)) in kernel.places else x
    emit_scheme(kernel, node, x, layout, results, replace(scheme, some=some))


def _in_panels(isa: Isa, node: Node) -> bool:
    """Whether many rows go by weights that are widened once for a tile of rows."""
    narrow = node.inputs[1].dtype in ("bf16", "f16")
    return narrow and Layout.parse(node["layout"]).depth == 1 and isa.vector_bytes >= 32


def float_scheme(kernel: Kernel, node: Node, bias_from: int = 2) -> Scheme:
    """How float weights are summed in register tiles."""
    layout, isa = Layout.parse(node["layout"]), kernel.isa
    if layout.columns != LANES or layout.depth not in (1, 2):
        raise CodegenError(
            f"{node.op.name}: layout {node['layout']!r}; the CPU templates know n16 and n16k2"
        )
    if layout.depth == 2:
        if not isa.has_bf16_dot:
            raise CodegenError(
                f"{node.op.name}: layout n16k2 needs avx512_bf16, which the target lacks"
            )
        kernel.snippets.add(DOT_BF16)
    many = None
    if isa.sums_by_tiles and layout.depth == 2:
        many = Many(_by_tiles, amx.ROWS, each=TILED_FROM)
    elif _in_panels(isa, node):
        panels = partial(emit_float_panels, tile=panel_of(isa))
        above, each = (by[isa.vector_bytes] for by in (PANELS_ABOVE, PANELS_FROM))
        many = Many(panels, isa.many.rows, above, each)
    return Scheme((isa.one, isa.few, isa.many), _over_depth, bias_from, many=many)


def _by_tiles(linear: Linear, tiling: Tiling) -> None:
    steps = Steps(groups=1, length=int(linear.x.shape[-1]), size=32, width=2)
    emit_whole(linear, tiling, "tdpbf16ps", steps, plain)


def _uses_dot(linear: Linear) -> bool:
    return linear.layout.depth == 2


def _over_depth(
    linear: Linear, tile: Tile, sums: Sums, block: list[Expr], at: list[list[Expr]]
) -> None:
    whole, rest = divmod(linear.depth, tile.unroll)
    if whole:
        with T.serial(i64(0), i64(whole)) as k:
            for u in range(tile.unroll):
                _step(linear, sums, u, block, at, k * i64(tile.unroll) + i64(u))
    for u in range(rest):
        _step(linear, sums, u, block, at, i64(whole * tile.unroll + u))


def _step(
    linear: Linear, sums: Sums, u: int, block: list[Expr], at: list[list[Expr]], k: Expr
) -> None:
    """One k (or pair): a vector of weights for each column, a broadcast of x for each row."""
    x = [_broadcast_x(linear, row, k) for row in at]
    for o in linear.offsets:
        for c, b in enumerate(block):
            w = _weights(linear, linear.stored(b, o), k)
            for r, value in enumerate(x):
                _multiply_add(linear, sums.parts[(o, r, c)][u], value, w)


def _broadcast_x(linear: Linear, row: list[Expr], k: Expr) -> Expr:
    place = linear.kernel.places[linear.x]
    if not _uses_dot(linear):
        return bind(cast(place.read([*row, k]), linear.sum_dtype))
    pair = place.buffer[(*row, T.ramp(k * i64(2), i64(1), 2))]
    return bind(tirx.op.reinterpret("int32", pair))


def _weights(linear: Linear, block: Expr, k: Expr) -> Expr:
    w = linear.kernel.places[linear.node.inputs[1]]
    if _uses_dot(linear):
        bits = read_weights(linear, w.buffer, (block, k, i64(0), i64(0)), 2 * LANES)
        return bind(tirx.op.reinterpret("int16x32", bits))
    return widened(w, read_weights(linear, w.buffer, (block, k, i64(0)), LANES), linear.sum_dtype)


def _multiply_add(linear: Linear, total: tirx.Buffer, x: Expr, w: Expr) -> None:
    lanes = T.ramp(0, 1, LANES)
    if _uses_dot(linear):
        pairs = tirx.op.reinterpret("int16x32", T.broadcast(x, LANES))
        value = T.call_extern("float32x16", "ferrule_dot_bf16", total[lanes], w, pairs)
    else:
        value = total[lanes] + T.broadcast(x, LANES) * w
    T.buffer_store(total, value, [lanes])


def _spaces(node: Node, target: Target) -> tuple[Space, ...]:
    isa, pairs = isa_of(target), Layout.parse(node["layout"]).depth == 2
    return tile_spaces(
        node,
        target,
        (isa.one, isa.few, isa.many),
        "bf16" if pairs else "f32",
        # One order of sums is that of one partial sum.
        unrolls=(1,) if isa.sums_in_order else (1, 2, 4),
        by_tiles=pairs and isa.sums_by_tiles,
        panels=(panel_of(isa), SIZES) if _in_panels(isa, node) else None,
    )


LINEAR = Anchor(_needs, emit_linear, _spaces)
