"""The linear template over quantized weights: codes widened to float32 in registers, or integer
dot products with activations that are int8 themselves.

    y[t, n] = epilogue(sum_j scale[n, j] x_scale[t, j] sum_i x[t, j, i] (q[n, j, i] - zero) + b)

The zero is one offset, or a code of each group's own. Sums of a group stay in registers and are
multiplied by their scales once, at the group's end.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...ir.node import Node
from ...ir.ops import tensor as t
from ...ir.ops.quantized import operands
from ...ir.target import Target
from ..backend import Layout
from ..errors import CodegenError
from ..space import Space
from . import amx
from .dots import Dot, nibbles
from .function import Anchor, Kernel
from .group_steps import Parts, add_integers, fresh_vector, gather, over_steps
from .isa import LANES, Isa, Tile, isa_of
from .linear import Linear, Many, Scheme, Sums
from .loops import Place
from .narrow_panels import PANEL, ROWS, SIZES, emit_narrow, fits_narrow
from .quantized_tiles import Vectors, by_tiles, fits_tiles, group_sums, zeros_of
from .register_tiles import emit_scheme, load_vector
from .row_tiles import tile_spaces
from .two_levels import (
    begin_of_blocks,
    emit_unpacked,
    groups_per_block,
    multiplies_codes,
    over_blocks,
)
from .values import Expr, bind, cast, const, i64

DOT_WORDS = {"u8": "n16k4", "u4": "n16k4x2"}
WIDE_WORDS = {"u8": "n16", "u4": "n16k2"}
GROUPS_ABOVE = 4
"""Rows up to which scaled groups go faster through registers than through tiles."""
UNPACKED = Tile(8, 2)
"""The row tile over unpacked codes: the whole numbers of a block and its sums stay in registers."""
UNPACKED_FROM = 64
"""Codes with one scale from which on unpacking them once is worth it."""
NARROW_ABOVE = 6
"""Rows up to which unpacking codes in registers costs less than laying them out, on AVX2."""
UNPACKED_ABOVE = 24
"""Rows up to which unpacking codes in registers, for eight rows at a time, costs less."""
TILED_FROM, UNPACKED_EACH, NARROW_EACH = 4, 16, 8
"""Rows of an expert, in the mean, from which each of the ways for many rows does them."""


def _check(node: Node, words: Mapping[str, str], codes: Node) -> None:
    wanted = words[codes.dtype]
    if Layout.parse(node["layout"]).with_sides(1).word != wanted:
        raise CodegenError(
            f"{node.op.name}: layout {node['layout']!r} for {codes.type}; {wanted} is known"
        )


def _bias_from(node: Node) -> int:
    return len(node.inputs) - (operands(node).bias is not None)


def wide_tiles(isa: Isa) -> tuple[Tile, Tile, Tile]:
    """Row tiles for float sums: each is held twice, of the group and of the row."""
    if isa.registers >= 32:
        return Tile(1, 4), Tile(4, 2), Tile(6, 2)
    return Tile(1, 2), Tile(2, 1), Tile(4, 1)


def integer_tiles(isa: Isa, node: Node) -> tuple[Tile, Tile, Tile]:
    """Row tiles for integer dots: the sums of rows leave the registers where they are touched
    once, and stay where they are touched for every group.

    Without VNNI four-bit codes of one row are read as they lie, which memory is asked ahead for
    (Zen 3, 6 layers of hidden 896: 3.7 ms, four column vectors side by side 4.7); codes of eight
    bits, of which there is less to compute, are faster side by side (4.0 ms, as they lie 5.0).
    """
    groups = int(node.inputs[0].shape[-2])
    if isa.registers < 32:  # a column vector takes two registers
        one = Tile(1, 1) if operands(node).codes.dtype == "u4" else Tile(1, 4)
        return one, Tile(2, 1), Tile(4, 1)
    if operands(node).multipliers is not None:
        return Tile(1, 1), Tile(4, 1), Tile(4, 2)
    return Tile(1, 1), Tile(4, 1), Tile(6, 4) if groups == 1 else Tile(4, 3)


def _some_rows(isa: Isa) -> Tile | None:
    """The tile of some rows: codes are unpacked once for all of them, and pass as they lie."""
    return Tile(8, 1) if isa.registers >= 32 else None


# -- codes widened to float32


def wide_operand(node: Node, x: Node | None = None) -> Node:
    """x (the node's own, if none is given) with zeros up to a whole number of groups."""
    x, scale = node.inputs[0] if x is None else x, node.inputs[2]
    short = int(scale.shape[-2]) * node["group"] - int(x.shape[-1])
    none = (0,) * (len(x.shape) - 1)
    return t.pad(x, before=(*none, 0), after=(*none, short), value=0.0) if short else x


def wide_scheme(kernel: Kernel, node: Node) -> Scheme:
    """How codes widened to float32 are summed."""
    _check(node, WIDE_WORDS, node.inputs[1])
    return Scheme(wide_tiles(kernel.isa), _over_wide_groups, bias_from=_bias_from(node))


def emit_wide(kernel: Kernel, node: Node, results: Mapping[Node, Place]) -> None:
    """Emit a packed_quantized_linear."""
    scheme, layout = wide_scheme(kernel, node), Layout.parse(node["layout"])
    emit_scheme(kernel, node, wide_operand(node), layout, results, scheme)


def _over_wide_groups(
    linear: Linear, tile: Tile, sums: Sums, block: list[Expr], at: list[list[Expr]]
) -> None:
    node = linear.node
    groups, steps = int(node.inputs[2].shape[-2]), node["group"] // linear.layout.depth
    with T.serial(i64(0), i64(groups)) as g:
        parts = {
            key: fresh_vector("float32", T.broadcast(const(0, "float32"), LANES))
            for key in sums.parts
        }
        zeros = {key: _widened(z) for key, z in zeros_of(linear, block, g).items()}
        over_steps(steps, lambda s, _: _wide_step(linear, parts, block, at, g, s, zeros))
        for o, c, scale in _scales(linear, node.inputs[2], block, g):
            for r in range(tile.rows):
                gather(sums.parts[o, r, c][0], parts[o, r, c], scale)


def _wide_step(
    linear: Linear,
    parts: Parts,
    block: list[Expr],
    at: list[list[Expr]],
    g: Expr,
    s: Expr,
    zeros: Vectors,
) -> None:
    node, depth = linear.node, linear.layout.depth
    step = bind(g * i64(node["group"] // depth) + s)
    place = linear.kernel.places[linear.x]
    for half in range(depth):
        k = step * i64(depth) + i64(half)
        x = [bind(cast(place.read([*row, k]), "float32")) for row in at]
        for o in linear.offsets:
            for c, b in enumerate(block):
                number = _wide_codes(linear, linear.stored(b, o), step, half)
                w = bind(number - zeros[o, c])
                for r, value in enumerate(x):
                    total = parts[o, r, c]
                    lanes = T.ramp(0, 1, LANES)
                    T.buffer_store(total, total[lanes] + T.broadcast(value, LANES) * w, [lanes])


def _wide_codes(linear: Linear, block: Expr, step: Expr, half: int) -> Expr:
    """Sixteen codes of one k as float32."""
    codes = linear.node.inputs[1]
    buffer = linear.kernel.places[codes].buffer
    if codes.dtype == "u8":
        value = buffer[(block, step, T.ramp(i64(0), i64(1), LANES))]
    else:
        value = buffer[(block, step, i64(0), T.ramp(i64(0), i64(1), LANES))]
        value = nibbles(value, half, LANES)
    return _widened(tirx.Cast(f"int32x{LANES}", value))


def _widened(value: Expr) -> Expr:
    return bind(tirx.Cast(f"float32x{LANES}", value))


# -- integer dot products


def sums_below(kernel: Kernel, node: Node, x: Node | None = None) -> Node:
    """What the sums of each group begin with where all codes have one zero: minus the zero, less
    what the codes have lost, times the sum of x (the node's own, if none is given); with zeros
    of their own it is minus that sum. [.., J], or [.., B, P] with multipliers.
    """
    found, x = operands(node), operands(node).x if x is None else x
    lost = Dot(kernel.isa.integer_dot, found.codes.dtype).taken_off
    times = -1 if found.zeros is not None else lost - int(node["offset"])
    if (per := groups_per_block(node)) > 1:
        x = t.reshape(x, shape=(*x.shape[:-1], per, int(x.shape[-1]) // per))
    return t.mul(group_sums(x), t.scalar(times, "i32"))


def block_sums_below(kernel: Kernel, node: Node, x: Node | None = None) -> Node:
    """sums_below of whole blocks of groups."""
    below = sums_below(kernel, node, x)
    return begin_of_blocks(below) if operands(node).multipliers is not None else below


def beginnings(kernel: Kernel, node: Node, x: Node | None = None) -> tuple[Node, ...]:
    """What the sums that the target's dot products make may begin with."""
    below = sums_below(kernel, node, x)
    multiplied = multiplies_codes(kernel.isa)
    return (below, block_sums_below(kernel, node, x)) if multiplied else (below,)


def integer_scheme(kernel: Kernel, node: Node) -> Scheme:
    """How integer dot products are summed."""
    _check(node, DOT_WORDS, node.inputs[2])
    if not kernel.isa.integer_dot:
        raise CodegenError(f"{node.op.name} needs avx2 or better, which the target lacks")
    tiles = integer_tiles(kernel.isa, node)
    limited, many = _more_rows(kernel, node, tiles[1])
    return Scheme(tiles, _over_integer_groups, _bias_from(node), limited, many)


def _more_rows(
    kernel: Kernel, node: Node, few: Tile
) -> tuple[tuple[int, Tile] | None, Many | None]:
    """The tile that takes some rows by itself, with the most of them, and the way of many rows,
    where these are others than those of few and many.
    """
    isa, some = kernel.isa, _some_rows(kernel.isa)
    if isa.has_integer_tiles and fits_tiles(node):
        one_scale = int(node.inputs[0].shape[-2]) == 1
        return None, Many(by_tiles, amx.ROWS, 0 if one_scale else GROUPS_ABOVE, TILED_FROM)
    if some is not None and unpacks(isa, node):
        begin = block_sums_below(kernel, node)
        unpacked = partial(emit_unpacked, tile=UNPACKED, begin=begin)
        many = Many(unpacked, above=UNPACKED_ABOVE, each=UNPACKED_EACH)
        return (UNPACKED_ABOVE, some), many
    if narrows(isa, node):
        narrow = partial(emit_narrow, tile=PANEL, begin=sums_below(kernel, node))
        return (NARROW_ABOVE, few), Many(narrow, ROWS, NARROW_ABOVE, NARROW_EACH)
    return None if some is None else (some.rows, some), None


def narrows(isa: Isa, node: Node) -> bool:
    """Whether many rows go by codes that are unpacked once, their sums in 16 bits."""
    return isa.integer_dot == "pairs" and fits_narrow(node)


def unpacks(isa: Isa, node: Node) -> bool:
    """Whether many rows go by codes that are unpacked once: worth it where whole numbers are
    summed over so many k that scaling them is little beside it.
    """
    found = operands(node)
    far = int(found.x.shape[-1]) >= UNPACKED_FROM
    return multiplies_codes(isa) and found.codes.dtype == "u4" and not found.zeros and far


def emit_integer(kernel: Kernel, node: Node, results: Mapping[Node, Place]) -> None:
    """Emit a packed_integer_linear."""
    scheme, layout = integer_scheme(kernel, node), Layout.parse(node["layout"])
    emit_scheme(kernel, node, node.inputs[0], layout, results, scheme)


def _over_integer_groups(
    linear: Linear, tile: Tile, sums: Sums, block: list[Expr], at: list[list[Expr]]
) -> None:
    node, kernel = linear.node, linear.kernel
    if operands(node).multipliers is not None:
        return over_blocks(linear, tile, sums, block, at, sums_below(kernel, node))
    groups, length = (int(d) for d in node.inputs[0].shape[-2:])
    steps = length // (linear.layout.depth * linear.layout.pairs)
    below = kernel.places[sums_below(kernel, node)]
    factors = kernel.places[node.inputs[1]]
    dot = Dot(kernel.isa.integer_dot, linear.codes.dtype)
    less, one_zero = T.broadcast(const(dot.taken_off, "int32"), LANES), operands(node).zeros is None
    with T.serial(i64(0), i64(groups)) as g:
        first = [T.broadcast(bind(below.read([*row, g])), LANES) for row in at]
        zeros = {} if one_zero else zeros_of(linear, block, g)
        parts = {
            (o, r, c): fresh_vector("int32", first[r] * (zeros[o, c] - less) if zeros else first[r])
            for o, r, c in sums.parts
        }
        add_integers(linear, parts, block, at, g, steps, dot)
        x_scale = [bind(factors.read([*row, g])) for row in at]
        for o, c, scale in _scales(linear, node.inputs[3], block, g):
            for r in range(tile.rows):
                both = scale * T.broadcast(x_scale[r], LANES)
                gather(sums.parts[o, r, c][0], parts[o, r, c], both)


# -- what both share


def _scales(linear: Linear, scale: Node, block: list[Expr], g: Expr) -> list[tuple[int, int, Expr]]:
    """The scales of a group, sixteen columns at a time, by (offset, column vector)."""
    place = linear.kernel.places[scale]
    return [
        (o, c, load_vector(place, (linear.stored(b, o), g), "float32"))
        for o in linear.offsets
        for c, b in enumerate(block)
    ]


def _wide_needs(kernel: Kernel, node: Node) -> dict[Node, str]:
    return {wide_operand(node): "f32"}


def _integer_needs(kernel: Kernel, node: Node) -> dict[Node, str]:
    needed = {node.inputs[0]: "i8", node.inputs[1]: "f32"}
    needed |= dict.fromkeys(beginnings(kernel, node), "i32")
    return needed | ({group_sums(node.inputs[0]): "i32"} if kernel.isa.has_integer_tiles else {})


def _wide_spaces(node: Node, target: Target) -> tuple[Space, ...]:
    return tile_spaces(node, target, wide_tiles(isa_of(target)), "f32")


def _integer_spaces(node: Node, target: Target) -> tuple[Space, ...]:
    isa = isa_of(target)
    in_tiles = isa.has_integer_tiles and fits_tiles(node)
    tiles = integer_tiles(isa, node)
    if not in_tiles and unpacks(isa, node):
        tiles = (*tiles[:2], UNPACKED)
    panels = (PANEL, SIZES) if narrows(isa, node) else None
    return tile_spaces(node, target, tiles, "i8", by_tiles=in_tiles, panels=panels)


QUANTIZED = Anchor(_wide_needs, emit_wide, _wide_spaces)
INTEGER = Anchor(_integer_needs, emit_integer, _integer_spaces)
