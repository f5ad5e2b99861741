"""Integer linears over quantized weights by AMX tiles: which of the forms of tiles.py takes them,
and what a group's codes are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...ir.node import Node
from ...ir.ops import tensor as t
from ...ir.ops.quantized import operands
from .dots import Dot
from .group_steps import codes_at
from .isa import LANES
from .linear import Linear, Tiling
from .panels import Panel, Put, Steps
from .register_tiles import load_vector
from .tiled_codes import Wide, emit_widened
from .tiled_groups import Codes, emit_groups
from .tiled_rows import emit_whole
from .two_levels import unpack_block
from .values import Expr, bind, const, i64

_TURNS = 16
"""Parts at most in which a group's codes are unpacked."""

Vectors = Mapping[tuple[int, int], Expr]  # by (offset, column vector)


def fits_tiles(node: Node) -> bool:
    """Whether codes less their zeros are signed bytes, or the zeros can wait for the row's end."""
    found = operands(node)
    return found.zeros is None or found.codes.dtype == "u4" or int(node.inputs[0].shape[-2]) == 1


def group_sums(x: Node) -> Node:
    """The sum of each group of x, by which the codes' offset is taken off."""
    return t.reduce_sum(t.cast(x, dtype="i32"), axes=(len(x.shape) - 1,))


def by_tiles(linear: Linear, tiling: Tiling) -> None:
    """All rows of an integer linear by tiles, in the form that its codes want."""
    groups, length = (int(d) for d in linear.node.inputs[0].shape[-2:])
    if groups == 1 and linear.codes.dtype == "u8":
        steps = Steps(groups, length, size=64, width=1)
        return emit_whole(linear, tiling, "tdpbsud", steps, _whole_row)
    one_level, isa = operands(linear.node).multipliers is None, linear.kernel.isa
    if one_level and isa.sums_by_tiles and linear.node.dtype == "bf16" and length % 32 == 0:
        wide = Wide(_runs, _zero_columns, _tile_scale, _tile_factor(linear))
        steps = Steps(groups, length, size=32, width=2, together=True)
        return emit_widened(linear, tiling, steps, wide)
    size = 64 if length % 64 == 0 else 32
    codes = Codes(_unpacked, _tile_scale, _tile_factor(linear))
    return emit_groups(linear, tiling, Steps(groups, length, size, 1, together=True), codes)


def _whole_row(panel: Panel, tile: Expr, vector: int, r: Expr, lane: Expr) -> Expr:
    """A sum less the codes' offset, times the scales of its row and column."""
    linear = panel.linear
    node, places = linear.node, linear.kernel.places
    row = panel.tiling.index(panel.number(tile, r))
    offset, block = panel.vectors[vector]
    at = [linear.stored(block, offset), i64(0), lane]
    zeros = operands(node).zeros
    zero = const(node["offset"], "int32") if zeros is None else places[zeros].read(at)
    total = bind(places[group_sums(node.inputs[0])].read([*row, i64(0)]))
    factor = bind(places[node.inputs[1]].read([*row, i64(0)]))
    scale = places[node.inputs[3]].read(at)
    whole = panel.sums[(*panel.row_of_sums(tile, vector, r), lane)]
    whole = whole - total * tirx.Cast("int32", zero)
    return tirx.Cast("float32", whole) * (scale * factor)


def _tile_scale(panel: Panel, block: Expr, group: Expr) -> Expr:
    place = panel.linear.kernel.places[panel.linear.node.inputs[3]]
    return load_vector(place, (block, group), "float32")


def _tile_factor(linear: Linear) -> Callable[[list[Expr], Expr], Expr]:
    place = linear.kernel.places[linear.node.inputs[1]]
    return lambda row, group: place.read([*row, group])


def _runs(panel: Panel, block: Expr, group: Expr, put: Put) -> Iterator[None]:
    """A group's codes as bytes, run of four k after run of four, in _TURNS turns of the iterator at
    most.
    """
    linear = replace(panel.linear, streams=1)
    pairs, dot = linear.layout.pairs, Dot("vnni512", linear.codes.dtype)
    steps = panel.steps.length // (4 * pairs)
    share = -(-steps // _TURNS)
    for low in range(0, steps, share):
        with T.serial(i64(low), i64(min(low + share, steps))) as s:
            step = bind(group * i64(steps) + s)
            (codes,) = codes_at(linear, dot, block, step)
            for half in range(pairs):
                part = codes if pairs == 1 else dot.nibbles(codes, half)
                put(bind(s * i64(pairs) + i64(half)), part)
        yield


def _unpacked(panel: Panel, block: Expr, group: Expr, put: Put) -> Iterator[None]:
    """A group's codes less their zeros, as signed bytes, run of four k after run of four; those of
    a block of groups times their multipliers.
    """

    def signed(run: Expr, codes: Expr) -> None:
        put(run, tirx.op.reinterpret(f"int8x{4 * LANES}", codes))

    if operands(panel.linear.node).multipliers is not None:
        return unpack_block(panel.linear, block, group, 0, signed)
    less = _zero_bytes(panel.linear, block, group)
    return _runs(panel, block, group, lambda run, codes: signed(run, codes - less))


def _zero_columns(panel: Panel, block: Expr, group: Expr) -> Expr:
    return _zeros_at(panel.linear, block, group)


def _zero_bytes(linear: Linear, block: Expr, group: Expr) -> Expr:
    """What a group's codes have for 0, four times for each of sixteen columns."""
    zeros = operands(linear.node).zeros
    if zeros is None:
        return T.broadcast(const(linear.node["offset"], "uint8"), 4 * LANES)
    buffer = linear.kernel.places[zeros].buffer
    each = tirx.Cast(f"uint32x{LANES}", buffer[(block, group, T.ramp(i64(0), i64(1), LANES))])
    four = each * T.broadcast(tirx.IntImm("uint32", 0x01010101), LANES)
    return bind(tirx.op.reinterpret(f"uint8x{4 * LANES}", bind(four)))


def zeros_of(linear: Linear, block: list[Expr], g: Expr) -> Vectors:
    """What a group's codes have for 0, sixteen columns at a time, in int32."""
    return {
        (o, c): _zeros_at(linear, linear.stored(b, o), g)
        for o in linear.offsets
        for c, b in enumerate(block)
    }


def _zeros_at(linear: Linear, block: Expr, g: Expr) -> Expr:
    zeros = operands(linear.node).zeros
    if zeros is None:
        return T.broadcast(tirx.IntImm("int32", linear.node["offset"]), LANES)
    buffer = linear.kernel.places[zeros].buffer
    value = buffer[(block, g, T.ramp(i64(0), i64(1), LANES))]
    return bind(tirx.Cast(f"int32x{LANES}", value))
