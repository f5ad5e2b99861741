"""Groups of rows: everything that no anchored kernel takes, joined where one loop over rows can do
it.

Ops at the same depth (as many anchors before them) can stand in one kernel without a cycle: a way
from one to the other through an anchor would make the other deeper. Among these, an op that mixes
the rows of another, or has other rows, goes to a later kernel; the rest join where they read a
value in common. Groups that are needed only later are computed there (join_rows.py).

Movement and casts cost nothing where they are read: each kernel does those that it needs itself,
and they are written to memory only for a kernel that cannot, or as a result. So does a kernel with
what is spread out of smaller values, where its template says that it can. A cast to fewer bits of
what rows compute is theirs: memory holds the smaller value.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..ir.dims import dim_text
from ..ir.graph import Graph
from ..ir.node import Node
from ..ir.types import BITS, TensorType, TupleType
from .anchor_groups import FREE, GIVEN, Anchors
from .follow_rows import follow
from .join_rows import LaterRows, Waiting
from .spread_values import spread_values


@dataclass(frozen=True)
class RowGroup:
    """Nodes computed in one kernel over common rows, in topological order."""

    members: tuple[Node, ...]


class Rows:
    """The groups of rows of a graph, beside its anchored groups."""

    def __init__(self, graph: Graph, anchors: Anchors) -> None:
        self.graph, self.anchors = graph, anchors
        self.redone = spread_values(graph, anchors.heads(), self._is_cheap)
        self.written = self._written()
        self.stage: dict[Node, int] = {}
        members = [n for n in graph.nodes() if self._is_member(n)]
        for node in members:
            self.stage[node] = self._stage(node)
        self.groups = self._groups(members)

    def is_carried(self, node: Node) -> bool:
        """Whether kernels redo the node as they read: movement, a cast, an item, a number, what is
        spread out of smaller values.
        """
        if node.op.name in FREE or node.op.name == "item":
            return True
        cheap = self._is_cheap(node) or node in self.redone
        return cheap and node not in self.written and node not in self.anchors.group

    def sources(self, node: Node) -> list[Node]:
        """The values in memory, or computed beside it, that the node reads, each once."""
        found: dict[Node, None] = {}
        for value in node.inputs:
            self._collect(value, found)
        return list(found)

    def _collect(self, value: Node, found: dict[Node, None]) -> None:
        if not self.is_carried(value):
            found[value] = None
            return
        for each in value.inputs:
            self._collect(each, found)

    def _written(self) -> frozenset[Node]:
        """The cheap nodes that are written to memory: results, and what an anchor wants whole."""
        wanted = [
            i for n in self.graph.nodes() if self.anchors.is_anchor(n) for i in self._whole(n)
        ]
        found: set[Node] = set()
        for node in (*wanted, *self.graph.outputs):
            if self._is_cheap(node) and not self._is_view(node) and node not in self.anchors.group:
                found.add(node)
        return frozenset(found)

    def _whole(self, anchor: Node) -> list[Node]:
        """The operands of an anchor that its prologue does not make."""
        template = self.anchors.template[anchor]
        prologue = self.anchors.templates[template].prologue if template else frozenset[str]()
        found: list[Node] = []
        stack = list(anchor.inputs)
        while stack:
            node = stack.pop()
            if (self._is_cheap(node) or node in self.redone) and node.op.name in prologue:
                stack.extend(node.inputs)
            else:
                found.append(node)
        return found

    def _is_view(self, node: Node) -> bool:
        """Whether the node is a kernel's result as it lies in memory, in another shape."""
        while node.op.name == "reshape":
            node = node.inputs[0]
        cheap = self._is_cheap(node) or node.op.name in GIVEN | FREE
        return node in self.anchors.group or not cheap

    def _is_cheap(self, node: Node) -> bool:
        """Movement, or a cast that saves no memory where rows make what is cast."""
        if node.op.name != "cast":
            return node.op.has("movement")
        source = node.inputs[0]
        while source.op.has("movement"):
            source = source.inputs[0]
        made = source.op.name not in GIVEN | FREE | {"item"} and source not in self.anchors.group
        return not made or BITS[node.dtype] >= BITS[node.inputs[0].dtype]

    def _is_member(self, node: Node) -> bool:
        given = node.op.name in GIVEN | FREE | {"item"}
        return not given and node not in self.anchors.group and not self.is_carried(node)

    def _stage(self, node: Node) -> int:
        depth = self.anchors.depth(node)
        before = [
            m for m in self.sources(node) if m in self.stage and self.anchors.depth(m) == depth
        ]
        return max((self.stage[m] + (not self._joins(m, node)) for m in before), default=0)

    def _joins(self, before: Node, node: Node) -> bool:
        """Whether row r of the node needs only row r of an earlier one, over the same rows."""
        if _rows(before) != _rows(node) or _rows(node) == "":
            return False
        return all(self._keeps_rows(node, i, v, before) for i, v in enumerate(node.inputs))

    def _keeps_rows(self, node: Node, at: int, value: Node, before: Node) -> bool:
        """Whether what input `at` takes from `before`, through carried nodes, is its own row."""
        if value is not before and not (self.is_carried(value) and self._reaches(value, before)):
            return True
        if node.op.name != "cache_append" and follow(node, at, 0) != 0:
            return False
        return value is before or all(
            self._keeps_rows(value, i, v, before) for i, v in enumerate(value.inputs)
        )

    def _reaches(self, value: Node, before: Node) -> bool:
        found: dict[Node, None] = {}
        self._collect(value, found)
        return before in found

    def _groups(self, members: list[Node]) -> list[RowGroup]:
        level: dict[tuple[int, int, str], list[Node]] = {}
        for node in members:
            key = (self.anchors.depth(node), self.stage[node], _rows(node))
            level.setdefault(key, []).append(node)
        waiting = [
            Waiting(g, (depth, stage + 1), rows)
            for (depth, stage, rows), nodes in level.items()
            for g in self._joined(nodes)
        ]
        anchored = {
            n: (g.anchor, (self.anchors.depth(g.anchor), 0))
            for g in self.anchors.groups
            for n in g.members
        }
        later = LaterRows(waiting, anchored, self.sources, self._joins, self.anchors.place)
        return [RowGroup(g.members) for g in later.joined()]

    def _joined(self, nodes: list[Node]) -> Iterable[tuple[Node, ...]]:
        """The nodes in parts that share no value but weights."""
        part = {n: n for n in nodes}

        def root(node: Node) -> Node:
            while part[node] is not node:
                node = part[node]
            return node

        reader: dict[Node, Node] = {}
        for node in nodes:
            for value in self.sources(node):
                if value.op.name != "parameter":
                    other = value if value in part else reader.setdefault(value, node)
                    part[root(node)] = root(other)
        found: dict[Node, list[Node]] = {}
        for node in nodes:
            found.setdefault(root(node), []).append(node)
        return [tuple(g) for g in found.values()]


def _rows(node: Node) -> str:
    """The leading dim of the loops that compute the node, as text."""
    kind = node.type
    if node.op.name == "cache_append":
        kind = node.inputs[1].type
    if isinstance(kind, TupleType):
        kind = kind.items[0]
    assert isinstance(kind, TensorType), node
    return dim_text(kind.shape[0]) if kind.shape else ""
