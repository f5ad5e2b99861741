"""Groups of rows that can wait for a later one are computed there: one kernel less.

A group is made where its operands are: as early as it can. Nothing needs it before its first
reader, so it may stand anywhere up to there. It joins the group that alone reads it, where that
needs of each row only the same row; or one on the way that reads a value in common, or that the
same kernel alone reads. What many layers read, such as a rotary table, stays apart from the first
of them, which else would have a kernel unlike theirs.

A kernel's place is (depth, 0) for an anchored group and (depth, stage + 1) for a group of rows:
what a kernel reads has a lesser place. What joins a later group has readers beyond it alone, so
that this stays true.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ..ir.node import Node

Place = tuple[int, int]


@dataclass(eq=False)
class Waiting:
    """Nodes of one loop over rows, the place where they are computed and the rows' dim as text."""

    members: tuple[Node, ...]
    place: Place
    rows: str


class LaterRows:
    """Joins groups. `sources` gives the values that a node reads from memory, `joins` whether row r
    of the second needs only row r of the first, `order` where a node stands, and `anchored` the
    readers that are in no group of rows, each with its kernel's anchor and place.
    """

    def __init__(
        self,
        groups: Iterable[Waiting],
        anchored: Mapping[Node, tuple[Node, Place]],
        sources: Callable[[Node], list[Node]],
        joins: Callable[[Node, Node], bool],
        order: Mapping[Node, int],
    ) -> None:
        self.groups = sorted(groups, key=lambda g: g.place, reverse=True)
        self.group = {n: g for g in self.groups for n in g.members}
        self.anchored, self.joins, self.order = anchored, joins, order
        self.sources = {n: sources(n) for n in (*self.group, *anchored)}
        self.readers: dict[Node, list[Node]] = {}
        for node, values in self.sources.items():
            for value in values:
                self.readers.setdefault(value, []).append(node)

    def joined(self) -> list[Waiting]:
        """The groups that remain, the last in place first."""
        left: list[Waiting] = []
        for group in self.groups:
            into = self._later(group, left)
            if into is None:
                left.append(group)
                continue
            members = sorted((*group.members, *into.members), key=self.order.__getitem__)
            into.members = tuple(members)
            self.group.update(dict.fromkeys(group.members, into))
        return left

    def _later(self, group: Waiting, left: list[Waiting]) -> Waiting | None:
        """The group that this one can be part of, the first in place; none where there is none."""
        reading = self._kernels_reading(group)
        if not reading:
            return None
        found = (other for other in reversed(left) if self._may_join(group, other, reading))
        return next(found, None)

    def _kernels_reading(self, group: Waiting) -> dict[object, Place]:
        """What reads a group: groups of rows, and anchored groups by their anchors."""
        found: dict[object, Place] = {}
        for node in group.members:
            for reader in self.readers.get(node, ()):
                if reader in self.anchored:
                    anchor, place = self.anchored[reader]
                    found[anchor] = place
                elif self.group[reader] is not group:
                    found[self.group[reader]] = self.group[reader].place
        return found

    def _may_join(self, group: Waiting, other: Waiting, reading: Mapping[object, Place]) -> bool:
        if other.rows != group.rows or not group.rows or other.place < group.place:
            return False
        if any(place <= other.place for by, place in reading.items() if by is not other):
            return False
        alone = len(reading) == 1
        if other in reading:
            return alone and self._keeps_rows(group, other)
        if alone and self._kernels_reading(other).keys() == reading.keys():
            return True
        return bool(self._values_read(group) & self._values_read(other))

    def _keeps_rows(self, group: Waiting, other: Waiting) -> bool:
        pairs = ((m, n) for n in other.members for m in self.sources[n] if m in group.members)
        return all(self.joins(before, node) for before, node in pairs)

    def _values_read(self, group: Waiting) -> set[Node]:
        """The values that a group reads, weights aside."""
        values = {v for n in group.members for v in self.sources[n]}
        return {v for v in values if v.op.name != "parameter"}
