"""Causal convolutions of each channel over the tokens of its sequence, from a state on.

An item is a run of channels of one sequence. The rows before a token stand in registers, where the
new row pushes them on, so that a token is read once, and what stands there at the end is the state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...ir.node import Node
from .function import Anchor, Kernel
from .isa import LANES
from .loops import Place, Work
from .sequences import Sequences, accumulated, pieces_of, wanted_whole
from .values import Expr, bind, bind_opaque, cast, const, i64, rounded, vectorized

Buffers = list[list[tirx.Buffer]]


@dataclass(frozen=True)
class _Conv:
    """One convolution: its sequences, taps, and where goes what is made of its rows."""

    batch: Sequences
    node: Node
    taps: int
    channels: int
    results: Mapping[Node, Place]

    @property
    def dtype(self) -> str:
        """The TVM dtype of the sums."""
        return accumulated(self.node.inputs[0].dtype)

    def value(self, work: Work, n: Expr, t: Expr, c: Expr) -> Expr:
        """x of a token and channel: as a state gives it back, so that no sum depends on whether the
        row came in this step.
        """
        x = self.node.inputs[0]
        value = work.pull().value(x, [*self.batch.index(n, t), c])
        if self.batch.state is not None and not x.op.has("leaf"):
            value = rounded(value, x.dtype)
        return cast(value, self.dtype)

    def tap(self, work: Work, j: int, c: Expr) -> Expr:
        """The weight of the row that stands taps - 1 - j rows before."""
        at = [c, i64(j)] if self.batch.state is None else [i64(j), c]
        return cast(work.pull().value(self.node.inputs[1], at), self.dtype)

    def store(self, work: Work, at: list[Expr], total: Expr) -> None:
        """What is made of the sum of a token and channel."""
        total = bind_opaque(total)
        pull = work.with_sources({self.batch.value: lambda _: total}).pull()
        for node, place in self.results.items():
            place.store(at, pull.value(node, at))


def _needs(kernel: Kernel, node: Node) -> dict[Node, str]:
    return wanted_whole(kernel, node.inputs[:2])


def emit_conv(kernel: Kernel, node: Node, results: Mapping[Node, Place]) -> None:
    """Emit a causal_conv or a state_conv."""
    batch = Sequences.of(kernel, node, 2)
    fused, done = batch.results(results)
    taps = int(node.inputs[1].shape[1 if batch.state is None else 0])
    channels = int(node.inputs[0].shape[-1])
    conv = _Conv(batch, node, taps, channels, fused)
    size = LANES if kernel.isa.registers < 32 else 2 * LANES  # rows and taps stay in registers
    whole, rest = divmod(channels, size)

    def one(work: Work, n: Expr, each: Expr) -> None:
        first = bind(each * i64(size))
        if not rest or not whole:
            return _columns(conv, work, n, first, rest or size)
        with T.If(tirx.LT(each, i64(whole))):
            with T.Then():
                _columns(conv, work, n, first, size)
            with T.Else():
                _columns(conv, work, n, i64(whole * size), rest)

    batch.over(whole + bool(rest), channels * (taps + 2) // LANES, one)
    kernel.places.update(done)


def _columns(conv: _Conv, work: Work, n: Expr, first: Expr, count: int) -> None:
    """Some channels of one sequence."""
    pieces = pieces_of(count)
    rows, weights = (
        [[T.alloc_buffer((lanes,), conv.dtype) for _, lanes in pieces] for _ in range(conv.taps)]
        for _ in range(2)
    )
    for j in range(conv.taps):
        for (low, lanes), w in zip(pieces, weights[j], strict=True):
            with vectorized(lanes) as v:
                T.buffer_store(w, conv.tap(work, j, first + i64(low) + v), [v])
    _begin(conv, n, first, pieces, rows)
    with T.serial(*conv.batch.rows(n)) as t:
        for p, (low, lanes) in enumerate(pieces):
            with vectorized(lanes) as v:
                c = first + i64(low) + v
                T.buffer_store(rows[-1][p], conv.value(work, n, t, c), [v])
                total = rows[0][p][v] * weights[0][p][v]
                for j in range(1, conv.taps):
                    total = total + rows[j][p][v] * weights[j][p][v]
                conv.store(work.within(v, 0, lanes), [*conv.batch.index(n, t), c], total)
                for j in range(conv.taps - 1):
                    T.buffer_store(rows[j][p], rows[j + 1][p][v], [v])
    _end(conv, n, first, pieces, rows)


def _begin(conv: _Conv, n: Expr, first: Expr, pieces: list[tuple[int, int]], rows: Buffers) -> None:
    """The rows before a sequence's first one: of its state, or zeros."""

    def fill(source: Expr | None) -> None:
        for j in range(conv.taps - 1):
            for (low, lanes), row in zip(pieces, rows[j], strict=True):
                with vectorized(lanes) as v:
                    value = const(0, conv.dtype)
                    if source is not None and conv.batch.state is not None:
                        at = [source, i64(j), first + i64(low) + v]
                        value = cast(conv.batch.state.read(at), conv.dtype)
                    T.buffer_store(row, value, [v])

    if conv.batch.state is None:
        return fill(None)
    source = conv.batch.source(n)
    with T.If(tirx.LT(source, i64(0))):
        with T.Then():
            fill(None)
        with T.Else():
            fill(source)


def _end(conv: _Conv, n: Expr, first: Expr, pieces: list[tuple[int, int]], rows: Buffers) -> None:
    """The rows that the next step begins with, into the sequence's state."""
    if conv.batch.state is None:
        return
    target = conv.batch.target(n)
    for j in range(conv.taps - 1):
        for (low, lanes), row in zip(pieces, rows[j], strict=True):
            with vectorized(lanes) as v:
                conv.batch.state.store([target, i64(j), first + i64(low) + v], row[v])


CONV = Anchor(_needs, emit_conv)
