"""Linears by AMX tiles over codes with a scale for each group of k, as bfloat16.

The codes of a chunk are widened once for all rows: (code - zero) scale, rounded to bfloat16; so are
the integers of x, times their scales. Both roundings are those that a model in bfloat16 makes
everywhere else; sums stay in their tiles over all of k, which is what makes this form fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from . import amx
from .isa import LANES
from .linear import Linear, Tiling
from .panels import Panel, Put, Steps, emit_all
from .tile_products import Stretch, add_steps, over_tiles
from .tiles import Body, Sums, emit_panels, panels_of, plain
from .values import Expr, bind, i64, nearest_bf16

PAIR = 2 * LANES
"""Elements of a tile's row: two of k for each of sixteen columns."""


@dataclass(frozen=True)
class Wide:
    """Where values come from: `runs(panel, block, group, put)` gives put(run, codes) for every
    run of four k of a group of a stored block of columns, turn by turn; `zero` and `scale` are a
    group's for sixteen columns, i32 and f32; `factor(row, group)` is the scale of x.
    """

    runs: Callable[[Panel, Expr, Expr, Put], Iterator[None]]
    zero: Callable[[Panel, Expr, Expr], Expr]
    scale: Callable[[Panel, Expr, Expr], Expr]
    factor: Callable[[list[Expr], Expr], Expr]


def emit_widened(linear: Linear, tiling: Tiling, steps: Steps, wide: Wide) -> None:
    """A linear whose codes and integers become bfloat16 on the way into tiles."""
    steps = replace(steps, cut=panels_of(linear).chunk)
    source = linear.kernel.places[linear.x].buffer

    def read(row: list[Expr], group: Expr, part: Expr) -> Expr:
        lanes = steps.size
        factor = T.broadcast(wide.factor(row, group), lanes)
        value = tirx.Cast(f"float32x{lanes}", source[(*row, group, part)]) * factor
        return tirx.Cast(f"uint16x{lanes}", _rounded(value, lanes))

    def chunk(panel: Panel, number: Expr, last: bool) -> None:
        _chunk(panel, wide, number)

    emit_panels(linear, tiling, steps, Sums("float32", plain), Body(chunk), read)


def _chunk(panel: Panel, wide: Wide, chunk: Expr) -> None:
    """A chunk's weights in bfloat16, and all rows' sums with its products more."""
    steps, columns = panel.steps, len(panel.vectors)
    held = amx.buffer((columns, steps.chunk, amx.ROWS, PAIR), "uint16")
    groups = steps.chunk // steps.count
    low = bind(chunk * i64(groups))
    count = bind(tirx.min(i64(steps.groups) - low, i64(groups)))
    for v in range(columns):
        with T.serial(i64(0), count) as g:
            _widen_group(panel, wide, held, (v, bind(low + g), g))
    first = bind(low * i64(steps.count))

    high = bind(first + count * i64(steps.count))

    def weights(vector: int, step: Expr) -> Expr:
        return held[i64(vector), step - first, i64(0), i64(0)]

    stretch = Stretch(first, high, tirx.EQ(chunk, i64(0)), weights)

    def block(tile: Expr, number: int, before: Expr | None) -> None:
        add_steps(panel, "tdpbf16ps", stretch, tile, number, before)

    over_tiles(panel, block)


def _widen_group(
    panel: Panel, wide: Wide, held: tirx.Buffer, place: tuple[int, Expr, Expr]
) -> None:
    v, group, at = place
    steps = panel.steps
    block = panel.stored()[v]
    zero, scale = bind(wide.zero(panel, block, group)), wide.scale(panel, block, group)
    per_step = steps.size // 4  # runs of a step: each gives two rows of a tile

    def put(run: Expr, codes: Expr) -> None:
        words = bind(tirx.op.reinterpret(f"int32x{LANES}", codes))
        step = bind(at * i64(steps.count) + tirx.truncdiv(run, i64(per_step)))
        row = tirx.truncmod(run, i64(per_step)) * i64(2)
        for half in range(2):
            low, high = (_scaled(words, 16 * half + shift, zero, scale) for shift in (0, 8))
            sixteen = T.broadcast(tirx.IntImm("uint32", 16), LANES)
            upper = tirx.op.shift_left(_rounded(high, LANES), sixteen)
            pairs = tirx.op.bitwise_or(_rounded(low, LANES), upper)
            bits = tirx.op.reinterpret(f"uint16x{PAIR}", bind(pairs))
            lanes = T.ramp(i64(0), i64(1), PAIR)
            T.buffer_store(held, bits, [i64(v), step, row + i64(half), lanes])

    emit_all(wide.runs(panel, block, group, put))


def _scaled(words: Expr, shift: int, zero: Expr, scale: Expr) -> Expr:
    """(code - zero) scale of the byte at a place in each of sixteen words."""
    moved = tirx.op.shift_right(words, T.broadcast(tirx.IntImm("int32", shift), LANES))
    code = tirx.op.bitwise_and(moved, T.broadcast(tirx.IntImm("int32", 255), LANES))
    return tirx.Cast(f"float32x{LANES}", code - zero) * scale


def _rounded(value: Expr, lanes: int) -> Expr:
    """The bits of finite floats rounded to bfloat16, each in a uint32."""
    return nearest_bf16(bind(tirx.op.reinterpret(f"uint32x{lanes}", value)))
