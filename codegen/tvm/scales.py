"""What codes of keys and values are multiplied by, laid out for the keys of a split.

Products are taken of codes as they are; the scale of a key multiplies its scores, that of a value
the weights of its key. So a split needs each of them once, for all heads of their group.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .attention import Attention, Item, Span
from .isa import LANES
from .values import Expr, bind, const, i64
from .vectors import lanes_from


@dataclass(frozen=True)
class Scales:
    """Scales of a split's keys and values, float32 [group of the item's, key within the split];
    those of group `row` are meant.
    """

    keys: tirx.Buffer
    values: tirx.Buffer
    row: Expr

    @staticmethod
    def scratch(a: Attention, groups: int) -> Scales:
        """For so many groups."""
        keys, values = (T.alloc_buffer((groups, a.space.keys), "float32") for _ in range(2))
        return Scales(keys, values, i64(0))

    def read(self, a: Attention, item: Item, span: Span, groups: tuple[Expr, Expr]) -> None:
        """Fill in those of a range of groups, the first group of the range to the first row.

        Values that are not there get a scale of zero: their weights are zero, and shall stay so.
        """
        low, high = groups
        first, last = span.blocks(2 * LANES)
        with T.serial(first * i64(2), last * i64(2)) as run:
            start = bind(run * i64(LANES))
            slots = self._slots(a, item, bind(span.base + start))
            end = T.broadcast(tirx.Cast("int32", span.end - start), LANES)
            there = tirx.LT(T.ramp(const(0, "int32"), const(1, "int32"), LANES), end)
            with T.serial(low, high) as g:
                for to, which in ((self.keys, 0), (self.values, 1)):
                    found = self._found(a, which, slots, g)
                    if which == 1:
                        found = tirx.Select(there, found, T.broadcast(const(0, "float32"), LANES))
                    T.buffer_store(to, found, [g - low, lanes_from(start)])

    def _slots(self, a: Attention, item: Item, start: Expr) -> list[Expr]:
        """The slots of LANES keys; the first alone where they lie side by side."""
        slot_of = a.places(item, start)
        return [bind(slot_of(i)) for i in range(1 if a.in_runs else LANES)]

    def _found(self, a: Attention, which: int, slots: list[Expr], group: Expr) -> Expr:
        assert a.factors is not None, a
        buffer = a.factors[which]
        if len(slots) == 1:
            # Of the slots that follow: a vector may only be the last index.
            return buffer[slots[0], T.ramp(group, i64(a.groups), LANES)]
        one = T.alloc_buffer((LANES,), "float32")
        for i, slot in enumerate(slots):
            T.buffer_store(one, buffer[slot, group], [i64(i)])
        return one[lanes_from(0)]

    def of(self, row: Expr) -> Scales:
        """Those of another group."""
        return replace(self, row=row)
