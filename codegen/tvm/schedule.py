"""How the work of a ragged attention is shared out: items, and who takes which.

Items are counted before the parallel region; threads then take the next one as they finish, so
that long and short sequences, and cores with other work to do, even out. What an item computes
does not depend on who takes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .ahead import Notes
from .function import Kernel
from .values import Expr, bind, i64

COUNTER = """
define i64 @ferrule_add(ptr %counter, i64 %more) alwaysinline {
  %r = atomicrmw add ptr %counter, i64 %more acq_rel
  ret i64 %r
}
"""
"""Adds to a number that threads share; gives what it was."""

TURNS = 4
"""Turns at the counter for each core of the target: more where there turn out to be more."""
ITEMS = 1
"""Items of decode wanted for each core before splits are cut by groups too."""


def add(counter: Expr, more: int) -> Expr:
    """What the shared number at an element was before `more` was added."""
    return T.call_extern("int64", "ferrule_add", T.address_of(counter), i64(more))


@dataclass(frozen=True)
class Share:
    """What a sequence asks for: `tiles` items of many tokens, or `splits` of one token's keys."""

    tiles: Expr
    splits: Expr


@dataclass(frozen=True)
class Schedule:
    """Per sequence: its first item and first split among all, and the parts of splits still to be
    done; `parts` is how many items a split is cut into, by groups.
    """

    sequences: Expr
    items: tirx.Buffer
    splits: tirx.Buffer
    left: tirx.Buffer
    next: tirx.Buffer
    parts: Expr

    @staticmethod
    def of(
        kernel: Kernel, sequences: Expr, groups: int, share: Callable[[Expr], Share]
    ) -> Schedule:
        """Count the items of every sequence."""
        kernel.snippets.add(COUNTER)
        items, splits, left = (T.alloc_buffer((sequences + i64(1),), "int64") for _ in range(3))
        following = T.alloc_buffer((1,), "int64")
        T.buffer_store(items, i64(0), [i64(0)])
        T.buffer_store(splits, i64(0), [i64(0)])
        T.buffer_store(following, i64(0), [i64(0)])
        with T.serial(i64(0), sequences) as n:
            T.buffer_store(splits, splits[n] + share(n).splits, [n + i64(1)])
        wanted = i64(ITEMS * kernel.isa.cores)
        one = bind(tirx.max(splits[sequences], i64(1)))
        # Truncated: floordiv by a number of unknown sign is a Let, and code for two may clash.
        parts = bind(tirx.min(tirx.truncdiv(wanted + one - i64(1), one), i64(groups)))
        with T.serial(i64(0), sequences) as n:
            mine = share(n)
            pieces = bind(mine.splits * parts)
            T.buffer_store(left, pieces, [n])
            T.buffer_store(items, items[n] + pieces + mine.tiles, [n + i64(1)])
        return Schedule(sequences, items, splits, left, following, parts)

    def run(self, kernel: Kernel, body: Callable[[Expr, Expr, Notes], None]) -> None:
        """body(sequence, number of the item, what its thread knows of the next one) for every
        item, on all threads.
        """
        turns = TURNS * kernel.isa.cores
        with T.parallel(i64(0), i64(turns)):
            at, notes = T.alloc_buffer((1,), "int64"), Notes.scratch()
            T.buffer_store(at, add(self.next[i64(0)], 1), [i64(0)])
            with T.While(tirx.LT(at[i64(0)], self.items[self.sequences])):
                number = bind(at[i64(0)])
                body(self.sequence_of(number, notes, "own"), number, notes)
                T.buffer_store(at, add(self.next[i64(0)], 1), [i64(0)])

    def sequence_of(self, number: Expr, notes: Notes, name: str) -> Expr:
        """Whose an item is, 0 where there is no such item; kept under a name, because TVM may read
        a number where it is used instead of where it is bound.
        """
        notes.put(name, i64(0))
        with T.serial(i64(0), self.sequences) as n:
            begun = tirx.LE(self.items[n], number)
            mine = tirx.And(begun, tirx.LT(number, self.items[n + i64(1)]))
            with T.If(mine), T.Then():
                notes.put(name, n)
        return bind(notes[name])

    def upcoming(self, notes: Notes) -> Expr:
        """The item that is taken up next, whoever will; below 0 where none is left."""
        notes.put("upcoming", add(self.next[i64(0)], 0))
        some = tirx.LT(notes["upcoming"], self.items[self.sequences])
        return bind(tirx.Select(some, notes["upcoming"], i64(-1)))

    def is_last(self, sequence: Expr) -> Expr:
        """Note that a part of a sequence's splits is done; whether it was the last."""
        return tirx.EQ(bind_now(add(self.left[sequence], -1)), i64(1))


def bind_now(value: Expr) -> Expr:
    """A call's result, made once."""
    held = T.alloc_buffer((1,), "int64")
    T.buffer_store(held, value, [i64(0)])
    return held[i64(0)]
