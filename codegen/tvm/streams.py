"""Reading the weights of a linear, as streams that one row passes or several."""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...ir.dims import product
from ...ir.ops.quantized import operands
from .fetch import LINE, fetch, in_turn
from .isa import READ_AHEAD, Isa
from .linear import Linear
from .values import Expr, bind, i64

AHEAD = 80 * LINE
"""Bytes ahead of its place in memory that a stream of weights is asked for where several rows pass:
more than a page, at whose end the hardware's own fetching stops.
"""


def read_weights(linear: Linear, buffer: tirx.Buffer, at: Sequence[Expr], lanes: int) -> Expr:
    """So many elements of a block's step, side by side from `at` on: (block, step, ..., first).

    Where several rows pass, memory AHEAD is asked for: codes that are unpacked on their way are
    read in turn all the same; of those that pass as they lie LLVM may keep some for later (eight
    rows of int8: 38 GB/s, in turn 31; of 4-bit codes 19, in turn 22).
    """
    if linear.after is not None:
        return in_turn(linear.kernel, buffer, at, lanes, read_after(linear, buffer, at))
    unpacked = linear.layout.pairs > 1
    if linear.streams == 1 or (linear.streams and unpacked):
        ahead = AHEAD if linear.streams > 1 else _ahead_of_one(linear.kernel.isa, unpacked)
        return in_turn(linear.kernel, buffer, at, lanes, ahead)
    if linear.streams:
        _ask_ahead(buffer, at)
    *outer, first = at
    return bind(buffer[(*outer, T.ramp(first, i64(1), lanes))])


def _ahead_of_one(isa: Isa, unpacked: bool) -> int:
    """How far ahead one row's stream is asked for. Where codes are unpacked without VNNI a core,
    whoever made it, has few reads in flight among so many instructions.
    """
    return READ_AHEAD if unpacked and isa.registers < 32 else isa.read_ahead


def read_after(linear: Linear, buffer: tirx.Buffer, at: Sequence[Expr]) -> list[Expr]:
    """Which element to ask for with one of a block's groups."""
    assert linear.after is not None
    _, number, *rest = at
    block, further = linear.after
    rows = int(buffer.shape[1]) // int(operands(linear.node).scale.shape[-2])
    return [block, number + further * i64(rows), *rest]


def _ask_ahead(buffer: tirx.Buffer, at: Sequence[Expr]) -> None:
    block, number, *rest = at
    step = int(product(int(d) for d in buffer.shape[2:])) * tvm.DataType(buffer.dtype).bits // 8
    if AHEAD % step == 0:
        fetch(buffer, [block, number + i64(AHEAD // step), *rest])
