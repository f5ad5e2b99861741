"""Anchored groups: an op with a template of its own, the elementwise ops behind it that the
template takes in, and what it takes in before it that goes over whole rows.

Order keeps the groups free of cycles. The key of a value is the greatest (depth, place) of the
anchors that it depends on, where depth counts anchors on the longest way to it. An op joins a group
behind the group's own value only if its other operands come from anchors of smaller key; so
whatever a group reads has a smaller key than the group, and no group reads itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.dims import equal_shapes
from ..ir.errors import IRError
from ..ir.graph import Graph
from ..ir.node import Node
from ..ir.types import TensorType
from ..ir.verify import quote
from .backends import ROWS, Template, Templates
from .epilogues import Epilogue

Key = tuple[int, int]
NO_ANCHOR: Key = (0, -1)
FREE = frozenset({"constant", "iota", "dim_value"})
GIVEN = frozenset({"input", "parameter"})


@dataclass(frozen=True)
class AnchorGroup:
    """An anchor, what is before it and follows it in the same kernel (in topological order), and
    the values that leave; for a tuple's items the tuple.
    """

    template: str
    anchor: Node
    members: tuple[Node, ...]
    results: tuple[Node, ...]


class Anchors:
    """The anchored groups of a graph, and for every node its template, key and anchored group."""

    def __init__(self, graph: Graph, templates: Templates) -> None:
        self.graph, self.templates = graph, templates
        self.place = {n: i for i, n in enumerate(graph.nodes())}
        self.template = {n: self._template(n) for n in graph.nodes()}
        self.key: dict[Node, Key] = {}
        for node in graph.nodes():
            self.key[node] = self._key(node)
        self.group: dict[Node, AnchorGroup] = {}
        anchors = [n for n in graph.nodes() if self.is_anchor(n)]
        self.groups = [self._grow(n) for n in sorted(anchors, key=self.key.__getitem__)]

    def is_anchor(self, node: Node) -> bool:
        """Whether the node begins a kernel that is no group of rows."""
        return self.template[node] not in (None, ROWS)

    def heads(self) -> dict[Node, Template]:
        """The anchors, each with its template."""
        words = ((n, t) for n, t in self.template.items() if t is not None and t != ROWS)
        return {n: self.templates[t] for n, t in words}

    def depth(self, node: Node) -> int:
        """How many anchors stand on the longest way to the node, itself included."""
        return self.key[node][0]

    def _template(self, node: Node) -> str | None:
        """The template that the node anchors; None for what is given or free."""
        if node.op.name in GIVEN | FREE | {"item"}:
            return None
        found = next((t for t, k in self.templates.items() if node.op.name in k.anchors), None)
        if found is None:
            known = ", ".join(sorted({o for t in self.templates.values() for o in t.anchors}))
            raise IRError(
                f"no template takes {node.op.name}; known: {known}\n{quote(self.graph, node)}"
            )
        return found

    def _key(self, node: Node) -> Key:
        below = max((self.key[i] for i in node.inputs), default=NO_ANCHOR)
        return (below[0] + 1, self.place[node]) if self.is_anchor(node) else below

    def _grow(self, anchor: Node) -> AnchorGroup:
        value = self._value(anchor)
        inside: dict[Node, None] = {anchor: None, value: None}
        waiting = set(self.graph.users(value))
        while waiting:
            node = min(waiting, key=self.place.__getitem__)
            waiting.remove(node)
            if node not in self.group and self._may_follow(anchor, inside, node):
                inside[node] = None
                waiting.update(self.graph.users(node))
        epilogue = Epilogue(self.graph, anchor, value, sorted(inside, key=self.place.__getitem__))
        part = epilogue.of_one()
        template = self.template[anchor]
        assert template is not None, anchor
        if self.templates[template].several:
            part = max(part, epilogue.of_several(self.key), key=len)
        own = tuple(n for n in part if n is anchor or n.op.name != "item")
        results = tuple(n for n in own if n is anchor or epilogue.leaves(n, part))
        group = AnchorGroup(template, anchor, (*self._before(anchor), *own), results)
        self.group.update(dict.fromkeys(group.members, group))
        return group

    def _value(self, anchor: Node) -> Node:
        """What the ops behind an anchor work on: its value, or the first item of it."""
        items = (n for n in self.graph.users(anchor) if n.op.name == "item" and n["index"] == 0)
        return next(items, anchor)

    def _before(self, anchor: Node) -> tuple[Node, ...]:
        """What of the anchor's first operand its template takes in. What rows make is theirs: they
        do it on the way.
        """
        node = anchor.inputs[0]
        alone = set(self.graph.users(node)) == {anchor} and node not in self.graph.outputs
        if node.op.name not in self.templates[self.template[anchor] or ROWS].before or not alone:
            return ()
        made = node.inputs[0]
        while made.op.name == "reshape":
            made = made.inputs[0]
        return (node,) if made in self.group and made in self.group[made].results else ()

    def _may_follow(self, anchor: Node, inside: dict[Node, None], node: Node) -> bool:
        template = self.templates[self.template[anchor] or ROWS]
        value = self._value(anchor)
        if node.op.name not in template.epilogue or not _has_shape(value, node):
            return False
        return all(i in inside or self._is_earlier(i, self.key[anchor]) for i in node.inputs)

    def _is_earlier(self, node: Node, key: Key) -> bool:
        """Whether an operand is there before the anchor with this key runs."""
        if self.key[node] < key and self.depth(node) < key[0]:
            return True
        while node.op.name in ("reshape", "item"):
            node = node.inputs[0]
        return node in self.group and node in self.group[node].results and self.key[node] < key


def _has_shape(value: Node, node: Node) -> bool:
    """Elementwise on the rows of an anchor's value, or a part of its columns (a gate beside what it
    gates).
    """
    if not isinstance(value.type, TensorType) or not isinstance(node.type, TensorType):
        return False
    if not value.shape:
        return False
    rows, columns = value.shape[:-1], value.shape[-1:]
    if node.op.name == "slice":
        return node.inputs[0] is value and node["axis"] == len(value.shape) - 1
    if not node.op.has("elementwise") or not equal_shapes(node.shape[:-1], rows):
        return False
    return equal_shapes(node.shape[-1:], columns) or _is_even_part(node, value)


def _is_even_part(node: Node, anchor: Node) -> bool:
    """Whether the columns are a whole fraction of the anchor's, so that they come from slices of
    it.
    """
    a, b = anchor.shape[-1], node.shape[-1]
    return isinstance(a, int) and isinstance(b, int) and b > 1 and a % b == 0
