"""Asking for the keys and values that decode reads next, evenly while it computes.

Memory gives its full rate to requests that come one after another without pause: a core holds a
few dozen at a time, so many at once stop it, and none while it computes leave memory idle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .attention import Attention, Item, Memory, Span
from .fetch import LINE
from .isa import LANES
from .values import Expr, bind_opaque, bytes_of, i64

ASK = """
define i32 @ferrule_ask(ptr %base, i64 %bytes) alwaysinline {
  %p = getelementptr i8, ptr %base, i64 %bytes
  call void @llvm.prefetch.p0(ptr %p, i32 0, i32 2, i32 1)
  ret i32 0
}
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
define i64 @ferrule_between(ptr %from, ptr %to) alwaysinline {
  %a = ptrtoint ptr %from to i64
  %b = ptrtoint ptr %to to i64
  %r = sub i64 %b, %a
  ret i64 %r
}
"""
"""Asks for the line at some bytes from an address; bytes from one address to another."""

LEAD = 32 << 10
"""Bytes that are asked for before they are read: some times what is on its way from memory."""
_NEVER_AGAIN = 1 << 40
"""Lines that are left of a piece behind which there is nothing to ask for."""


_WORDS = (
    "own", "upcoming", "other", "number", "sequence", "query", "low", "high", "group", "known",
    "at", "left", "piece",
)  # fmt: skip


@dataclass(frozen=True)
class Notes:
    """Numbers that a thread keeps from item to item, by name.

    Of the item that it will likely take up next: `number` (below 0 where there is none), whose keys
    it reads, from which on, and of which group; what is asked for of one is taken for asked in the
    next. They are words of one buffer, which lives as long as the thread's work: TVM puts small
    buffers into the memory of others that are done with, and LLVM takes numbers of two types for
    apart.
    """

    buffer: tirx.Buffer

    @staticmethod
    def scratch() -> Notes:
        """Nothing known."""
        made = Notes(T.alloc_buffer((len(_WORDS),), "int64"))
        for name in _WORDS:
            made.put(name, i64(-1))
        return made

    def __getitem__(self, name: str) -> Expr:
        return self.buffer[i64(_WORDS.index(name))]

    def put(self, name: str, value: Expr) -> None:
        """Set one."""
        T.buffer_store(self.buffer, value, [i64(_WORDS.index(name))])

    def expect(self, number: Expr, item: Item, low: Expr) -> None:
        """Set what comes next."""
        values = {
            "number": number,
            "sequence": item.sequence,
            "query": item.query,
            "low": low,
            "high": item.high,
            "group": item.group,
        }
        for name, value in values.items():
            self.put(name, value)


@dataclass(frozen=True)
class Ahead:
    """A place in what an item reads, some way ahead of where it is at work: the keys of its split,
    then the values, then the first keys of the next item.

    What it computes is opaque to TVM's passes, which would write numbers of numbers out in each
    place that asks, and spend most of a kernel's compilation on proofs about them.

    It moves by pieces that lie side by side: runs of LANES keys with all their groups, or single
    keys where the item has some of the groups or pages are cut otherwise. `at` is bytes from the
    first key of all, `left` the lines left of the piece, `piece` the number of the one behind it.
    """

    a: Attention
    item: Item
    start: Expr
    pieces: Expr
    keys: Expr
    lead: Expr
    groups: tuple[Expr, Expr]
    between: Expr
    notes: Notes

    @staticmethod
    def of(
        a: Attention,
        item: Item,
        span: Span,
        groups: tuple[Expr, Expr],
        number: Expr,
        notes: Notes,
        reach: int = 0,
    ) -> Ahead:
        """Ahead of the first keys of an item's split, which lie in memory; they are asked for now
        unless the thread did so before. `reach`: keys of which a group is read before the next
        group's, all of which are to be there then.
        """
        assert a.memory is not None, a
        a.kernel.snippets.add(ASK)
        low, high = groups
        keys: Expr = i64(1)
        if a.in_runs:
            keys = bind_opaque(tirx.Select(tirx.EQ(high - low, i64(a.groups)), i64(LANES), i64(1)))
        begin, end = span.blocks(2 * LANES)
        pieces = bind_opaque(tirx.truncdiv((end - begin) * i64(2 * LANES), keys))
        wide = bind_opaque((high - low) * keys * i64(_row(a.memory[0])))
        # Single keys are asked for at once: of few groups memory would not keep up with more.
        most = tirx.Select(tirx.EQ(keys, i64(1)), i64(LEAD // 8), i64(LEAD))
        some = tirx.truncdiv(i64(reach) + keys - i64(1), keys)
        lead = bind_opaque(tirx.truncdiv(most + wide - i64(1), wide) + some)
        addresses = (T.address_of(m.buffer[i64(0), i64(0), i64(0)]) for m in a.memory)
        between = bind_opaque(T.call_extern("int64", "ferrule_between", *addresses))
        start = bind_opaque(span.base + begin * i64(2 * LANES))
        made = Ahead(a, item, start, pieces, keys, lead, groups, between, notes)
        made._begin(tirx.EQ(notes["number"], number))
        return made

    def _begin(self, asked: Expr) -> None:
        notes = self.notes
        for name in ("known", "at", "left"):
            notes.put(name, i64(0))
        lead = bind_opaque(tirx.min(self.lead, self.pieces))
        first = bind_opaque(tirx.Select(asked, lead, i64(0)))
        notes.put("piece", first)
        with T.serial(first, lead):
            self._move()
            with T.serial(i64(0), tirx.truncdiv(notes["left"] + i64(7), i64(8))):
                self._ask(8)
        notes.put("left", i64(0))

    def look(self, find: Callable[[Notes], None]) -> None:
        """Find what the thread will likely take up next: its first keys follow the values."""
        notes = self.notes
        find(notes)
        notes.put("known", tirx.Cast("int64", tirx.GE(notes["number"], i64(0))))
        stopped = tirx.GT(notes["left"], i64(_NEVER_AGAIN >> 1))
        notes.put("left", tirx.Select(stopped, i64(0), notes["left"]))
        notes.put("piece", tirx.min(notes["piece"], self.pieces * i64(2)))

    def ask(self, lines: int) -> None:
        """Ask for so many lines more."""
        with T.If(tirx.LE(self.notes["left"], i64(0))), T.Then():
            self._move()
        self._ask(lines)

    def _ask(self, lines: int) -> None:
        assert self.a.memory is not None, self.a
        base = T.address_of(self.a.memory[0].buffer[i64(0), i64(0), i64(0)])
        for line in range(lines):
            at = self.notes["at"] + i64(line * LINE)
            T.evaluate(T.call_extern("int32", "ferrule_ask", base, at))
        self.notes.put("at", self.notes["at"] + i64(lines * LINE))
        self.notes.put("left", self.notes["left"] - i64(lines))

    def _move(self) -> None:
        """To the next piece."""
        assert self.a.memory is not None, self.a
        zero, notes = i64(0), self.notes
        number = bind_opaque(notes["piece"])
        of_values = bind_opaque(tirx.Cast("int64", tirx.GE(number, self.pieces)))
        of_next = bind_opaque(tirx.Cast("int64", tirx.GE(number, self.pieces * i64(2))))
        own = bind_opaque(number - (of_values + of_next) * self.pieces)
        is_next = tirx.EQ(of_next, i64(1))
        done = tirx.And(is_next, tirx.GE(own, self.lead * notes["known"]))
        is_values = tirx.EQ(of_values - of_next, i64(1))
        item = self.item

        def chosen(mine: Expr, name: str) -> Expr:
            return bind_opaque(tirx.Select(is_next, notes[name], mine))

        low, start, high = (
            chosen(item.low, "low"),
            chosen(self.start, "low"),
            chosen(item.high, "high"),
        )
        held = tirx.min(start + own * self.keys, tirx.max(high - i64(1), zero))
        key = bind_opaque(tirx.max(held, tirx.max(low, zero)))
        sequence, query = chosen(item.sequence, "sequence"), chosen(item.query, "query")
        sequence, query = bind_opaque(tirx.max(sequence, zero)), bind_opaque(tirx.max(query, zero))
        slot = bind_opaque(self.a.slot(replace(item, sequence=sequence, query=query), key))
        first, last = self.groups
        group = chosen(first, "group")
        keys, values = (i64(_row(m)) for m in self.a.memory)
        entry = bind_opaque(tirx.Select(is_values, values, keys))
        at = (slot * i64(self.a.groups) + group) * entry
        size = (last - first) * self.keys * entry
        lines = bind_opaque(tirx.truncdiv(size + i64(LINE - 1), i64(LINE)))
        notes.put("at", at + (of_values - of_next) * self.between)
        notes.put("left", tirx.Select(done, i64(_NEVER_AGAIN), lines))
        notes.put("piece", number + i64(1))


def _row(memory: Memory) -> int:
    """Bytes of one group of a token's entry."""
    return int(memory.buffer.shape[2]) * int(bytes_of(memory.dtype))
