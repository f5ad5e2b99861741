"""Keys that lie in memory turned round: sixteen bytes of each of sixteen keys are a few vectors of
quarters, which two or three stages of shuffles inside quarters turn round.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .attention import Item, Memory
from .isa import LANES
from .values import Expr, bytes_of
from .vectors import ALL, lanes_from, turned_halves, turned_in_quarters

QUARTER = 16
"""Bytes of a quarter of a vector."""


def quarter_of(memory: Memory) -> int:
    """Elements of a quarter of a vector."""
    return QUARTER // int(bytes_of(memory.dtype))


def joined(memory: Memory, item: Item, slots: Sequence[Expr], lanes: Expr) -> Expr:
    """The same lanes of several tokens, one after another."""
    parts = [memory.buffer[slot, item.group, lanes] for slot in slots]
    return tirx.Shuffle(
        parts, [tirx.IntImm("int32", i) for i in range(len(slots) * int(lanes.lanes))]
    )


def turned_words(memory: Memory, item: Item, slots: Sequence[Expr], start: Expr) -> list[Expr]:
    """A quarter of a vector of LANES keys, whose elements begin at `start`, as four vectors of 32
    bits of a key a lane.
    """
    rows = list[tirx.Buffer]()
    for first in range(4):
        four = joined(memory, item, slots[first::4], lanes_from(start, quarter_of(memory)))
        row = T.alloc_buffer((LANES,), "int32")
        T.buffer_store(row, tirx.op.reinterpret("int32x16", four), [ALL])
        rows.append(row)
    return turned_in_quarters(rows)


def turned_elements(memory: Memory, item: Item, slots: Sequence[Expr], start: Expr) -> list[Expr]:
    """A quarter of a vector of LANES keys, of elements of 16 bits, as eight vectors of an element
    of a key a lane.
    """
    rows = list[tirx.Buffer]()
    for first in range(LANES // 2):
        two = joined(memory, item, slots[first :: LANES // 2], lanes_from(start, LANES // 2))
        row = T.alloc_buffer((LANES,), "uint16")
        T.buffer_store(row, tirx.op.reinterpret("uint16x16", two), [ALL])
        rows.append(row)
    return turned_halves(rows)
