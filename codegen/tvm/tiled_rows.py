"""Linears by AMX tiles whose sums run over all of k: bfloat16, and bytes with one scale a row of w.

Few rows read each panel's weights once and in their order, and ask for what comes next line by
line; many pass a chunk of them that stays in the first cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from . import amx
from .fetch import fetch
from .isa import LANES
from .linear import Linear, Tiling
from .panels import Panel, Steps
from .tile_products import Stretch, Weights, add_steps, over_tiles
from .tiles import Body, Scaled, Sums, column_vectors, emit_panels, panels_of
from .values import Expr, bind, const, i64

STEPS_AHEAD = 2
"""Steps of k ahead of its place that each stream of a few rows' weights is asked for."""


@dataclass(frozen=True)
class Ahead:
    """Asks for the weights of what comes after a panel's chunk: the run's next panel, or the first
    one's next chunk. A panel's chunk is short, and lies apart from the next one: hardware's own
    fetching begins anew with each.
    """

    panel: Panel
    blocks: list[Expr]
    step: Expr
    share: Expr

    @staticmethod
    def of(panel: Panel, chunk: Expr) -> Ahead:
        """For a chunk of a panel, whose row tiles each ask for a share of the lines."""
        linear, (first, place, count) = panel.linear, panel.after
        more = tirx.LT(place, count)
        group = bind(tirx.Select(more, first + place, first))
        blocks = [
            bind(linear.stored(block, offset))
            for offset, block in column_vectors(linear, group, panel.wide)
        ]
        cut = i64(panel.steps.cut)
        step = bind(tirx.Select(more, chunk, chunk + i64(1)) * cut)
        lines = cut * i64(amx.ROWS) + panel.tiles - i64(1)
        return Ahead(panel, blocks, step, bind(tirx.truncdiv(lines, panel.tiles)))

    def for_tiles(self, first: Expr, count: int) -> None:
        """The share of some row tiles."""
        linear = self.panel.linear
        w = linear.kernel.places[linear.codes].buffer
        low = bind(self.step * i64(amx.ROWS) + first * self.share)
        with T.serial(i64(0), self.share * i64(count)) as line:
            for block in self.blocks:
                fetch(w, [block, low + line, i64(0), i64(0)], near=2)


def emit_whole(linear: Linear, tiling: Tiling, kind: str, steps: Steps, value: Scaled) -> None:
    """A linear whose tiles of sums run over all of k, by the instruction `kind`."""
    steps = replace(steps, cut=panels_of(linear).chunk)
    cut = i64(steps.cut)
    whole, short = divmod(linear.depth, amx.ROWS)

    def add_chunk(panel: Panel, chunk: Expr, last: bool) -> None:
        tail = _tail(panel, whole, short) if last and short else None
        low = i64((steps.chunks - 1) * steps.cut) if last else bind(chunk * cut)
        high = i64(whole) if last else bind(low + cut)
        start: Expr | bool | None = tirx.EQ(chunk, i64(0))
        if last:
            start = True if steps.chunks == 1 else None
        stretch = Stretch(low, high, start, _packed_weights(panel), tail)
        ask = Ahead.of(panel, chunk)

        def block(tile: Expr, count: int, before: Expr | None) -> None:
            ask.for_tiles(tile, count)
            add_steps(panel, kind, stretch, tile, count, before)

        over_tiles(panel, block)

    def few(panel: Callable[[Expr], Panel], count: Expr, height: int) -> None:
        with T.serial(i64(0), count) as place:
            here = panel(place)
            after = panel(bind(tirx.min(place + i64(1), count - i64(1))))
            tail = _tail(here, whole, short) if short else None
            stretch = Stretch(i64(0), i64(whole), True, _asked_weights(here, after, whole), tail)
            add_steps(here, kind, stretch, i64(0), 1, None)

    dtype = "float32" if kind == "tdpbf16ps" else "int32"
    emit_panels(
        linear, tiling, steps, Sums(dtype, value), Body(add_chunk, apart=True, few=few, most=1)
    )


def _asked_weights(here: Panel, after: Panel, whole: int) -> Weights:
    """The packed weights of a panel; with each tile the one STEPS_AHEAD steps behind it is asked
    for, behind the last one what the next panel has first.
    """
    linear = here.linear
    w = linear.kernel.places[linear.codes].buffer
    pairs = list(zip(here.stored(), after.stored(), strict=True))
    packed = _packed_weights(here)

    def first(vector: int, step: Expr) -> Expr:
        ahead = bind(step + i64(STEPS_AHEAD))
        more = tirx.LT(ahead, i64(whole))
        block = bind(tirx.Select(more, *pairs[vector]))
        low = bind(tirx.Select(more, ahead, ahead - i64(whole)) * i64(amx.ROWS))
        for line in range(amx.ROWS):
            fetch(w, [block, low + i64(line), i64(0), i64(0)])
        return packed(vector, step)

    return first


def _packed_weights(panel: Panel) -> Weights:
    """Where tiles of weights lie in the packed weight itself."""
    w = panel.linear.kernel.places[panel.linear.codes].buffer

    def first(vector: int, step: Expr) -> Expr:
        offset, block = panel.vectors[vector]
        return w[panel.linear.stored(block, offset), step * i64(amx.ROWS), i64(0), i64(0)]

    return first


def _tail(panel: Panel, whole: int, short: int) -> tirx.Buffer:
    """The last, short step of each vector's weights, filled up with zeros."""
    linear = panel.linear
    w = linear.kernel.places[linear.codes].buffer
    width = LANES * linear.layout.depth
    buffer = amx.buffer((len(panel.vectors), amx.ROWS, width), str(w.dtype))
    lanes, zero = T.ramp(i64(0), i64(1), width), const(0, str(w.dtype))
    for v, (offset, block) in enumerate(panel.vectors):
        for r in range(amx.ROWS):
            value = T.broadcast(zero, width)
            if r < short:
                at = (linear.stored(block, offset), i64(whole * amx.ROWS + r))
                value = w[(*at, i64(0), T.ramp(i64(0), i64(1), width))]
            T.buffer_store(buffer, value, [i64(v), i64(r), lanes])
    return buffer
