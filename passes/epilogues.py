"""Which elementwise ops behind an anchor its kernel takes in, and which values then leave it.

What leaves is written to memory: one value, or several where the template writes several and each
is for another kernel anyway. What rows alone read, the rows make themselves.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ..ir.dims import equal_shapes
from ..ir.graph import Graph
from ..ir.node import Node
from ..ir.types import BITS

Key = tuple[int, int]


@dataclass(frozen=True)
class Epilogue:
    """Nodes that could follow an anchor in its kernel, in topological order; the first of them is
    the anchor, `value` what the others work on: the anchor, or the first item of its tuple.
    """

    graph: Graph
    anchor: Node
    value: Node
    nodes: Sequence[Node]

    def of_one(self) -> tuple[Node, ...]:
        """The most of the nodes of which one value leaves, the last."""
        best = tuple(n for n in self.nodes if n in (self.anchor, self.value))
        for last in self.nodes:
            part = self._behind(last)
            whole = self.value in part and set(self._left(part)) <= {last}
            if whole and len(part) > len(best):
                best = tuple(n for n in self.nodes if n in part)
        return best

    def of_several(self, key: Mapping[Node, Key]) -> tuple[Node, ...]:
        """All of the nodes but those that leave for nothing, which rows make where they read them,
        and those that need such; nothing where what leaves is not of as many columns. `key` tells
        what needs a later anchor.
        """
        part = dict.fromkeys(self.nodes)
        while (node := self._for_nothing(part, key)) is not None:
            # Rows make it behind this kernel, which then reads nothing that is made of it.
            for reader in self._reading(node, part):
                del part[reader]
        left = self._left(part)
        even = all(equal_shapes(n.shape[-1:], left[0].shape[-1:]) for n in left)
        return tuple(part) if even else ()

    def _for_nothing(self, part: Collection[Node], key: Mapping[Node, Key]) -> Node | None:
        """The last node of a part that leaves it for rows alone."""
        for node in reversed(self.nodes):
            if node not in part or node in (self.anchor, self.value):
                continue
            if not self.leaves(node, part):
                continue
            if _is_cheap(node) or not self._is_for_kernels(node, part, key):
                return node
        return None

    def _reading(self, root: Node, part: Collection[Node]) -> list[Node]:
        """A node of a part, and the nodes of it that need the node."""
        found = [root]
        for node in self.nodes:
            if node in part and node not in found and any(i in found for i in node.inputs):
                found.append(node)
        return found

    def _left(self, part: Collection[Node]) -> list[Node]:
        """The nodes of a part that leave it, where a tuple that is taken apart is none."""
        nodes = (n for n in part if n is self.value or n is not self.anchor)
        return [n for n in nodes if self.leaves(n, part)]

    def leaves(self, node: Node, part: Collection[Node]) -> bool:
        """Whether something outside a part reads one of its nodes."""
        return node in self.graph.outputs or any(n not in part for n in self.graph.users(node))

    def _is_for_kernels(self, node: Node, part: Collection[Node], key: Mapping[Node, Key]) -> bool:
        """Whether all that read a node outside a part are anchors, or need one that comes later."""
        readers = [n for n in self.graph.users(node) if n not in part]
        while readers:
            reader = readers.pop()
            if key[reader] > key[self.anchor]:
                continue
            if not _is_cheap(reader) or reader in self.graph.outputs:
                return False
            readers += self.graph.users(reader)
        return True

    def _behind(self, last: Node) -> set[Node]:
        """What of the nodes one depends on, itself included."""
        inside, found = set(self.nodes), set[Node]()
        stack = [last]
        while stack:
            node = stack.pop()
            if node not in found:
                found.add(node)
                stack.extend(i for i in node.inputs if i in inside)
        return found


def _is_cheap(node: Node) -> bool:
    """Movement, or a cast that saves no memory: done where it is read."""
    if node.op.name == "cast":
        return BITS[node.dtype] >= BITS[node.inputs[0].dtype]
    return node.op.has("movement")
