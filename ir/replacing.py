"""Replacing nodes of a graph: the one way in which programs change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from .errors import IRError
from .node import Node, walk

if TYPE_CHECKING:
    from .graph import Graph


def replaced(graph: Graph, mapping: Mapping[Node, Node]) -> Graph:
    """The graph with nodes replaced, as Graph.replace says it."""
    replacer = _Replacer(graph, mapping)
    for node in (*graph.nodes(), *graph.inputs):
        replacer.resolve(node)
    done = replacer.done
    inputs = tuple(done[i] for i in graph.inputs)
    outputs = tuple(done[o] for o in graph.outputs)
    origins = _carried(graph, mapping, done, set(walk((*outputs, *inputs))))
    return replace(graph, inputs=inputs, outputs=outputs, origins=origins)


class _Replacer:
    """Builds what stands for each node, inputs first, without recursion: graphs are deep.

    `done` maps each resolved node, of the graph or of a replacement, to what stands for it.
    """

    def __init__(self, graph: Graph, mapping: Mapping[Node, Node]) -> None:
        self.mapping = {old: new for old, new in mapping.items() if old is not new}
        nodes = dict.fromkeys((*graph.inputs, *graph.nodes()))
        self.order = {node: at for at, node in enumerate(nodes)}  # inputs before users
        self.done: dict[Node, Node] = {}

    def resolve(self, root: Node) -> None:
        """Fill done[root]; everything that it needs is resolved first."""
        inside: dict[Node, list[Node]] = {}  # the nodes being resolved, from root down
        stack = [root]
        while stack:
            node = stack[-1]
            if node in self.done:
                stack.pop()
                continue
            if node not in inside:
                inside[node] = self._inside(node)
            missing = [n for n in self._needs(node, inside[node]) if n not in self.done]
            if not missing:
                self.done[node] = self._built(node, inside.pop(node))
                stack.pop()
                continue
            circle = [n for n in missing if n in inside]
            if circle:
                raise IRError(f"the replacements of {circle[0]!r} and {node!r} use each other")
            stack += missing

    def _inside(self, node: Node) -> list[Node]:
        """The nodes of a replacement that depend on the replaced node, and the node itself: they
        are built anew without further replacing; inputs first."""
        target = self.mapping.get(node)
        if target is None:
            return [node]
        first = self.order.get(node, -1)
        depends: dict[Node, bool] = {node: True}
        stack = [target]
        while stack:
            current = stack[-1]
            if current in depends:
                stack.pop()
                continue
            if self.order.get(current, first) < first:
                depends[current] = False  # it comes before the node, so it cannot depend on it
                continue
            unknown = [i for i in current.inputs if i not in depends]
            stack += unknown
            if not unknown:
                depends[current] = any(depends[i] for i in current.inputs)
        kept = [n for n, does in depends.items() if does]
        return kept if depends[target] else []

    def _needs(self, node: Node, inside: list[Node]) -> list[Node]:
        """What must be resolved before the node can be."""
        if not inside:
            return [self.mapping[node]]
        kept = set(inside)
        return [i for n in inside for i in n.inputs if i not in kept]

    def _built(self, node: Node, inside: list[Node]) -> Node:
        target = self.mapping.get(node, node)
        new: dict[Node, Node] = {}
        for n in inside:
            new[n] = n.with_inputs(tuple(new[i] if i in new else self.done[i] for i in n.inputs))
        return new[target] if inside else self.done[target]


def _carried(
    graph: Graph, mapping: Mapping[Node, Node], done: Mapping[Node, Node], reached: set[Node]
) -> dict[Node, tuple[str, ...]]:
    """The origins of the reached nodes.

    What stands for a node inherits the node's origin, and so does what was made for it: the nodes
    below a replacement that stand for no other node of the graph.
    """
    standing = {done[n] for n in graph.nodes()}
    origins: dict[Node, tuple[str, ...]] = {}
    for old in graph.nodes():
        source = graph.origin(old)
        stack = [done[old]] if source else []
        seen: set[Node] = set()
        while stack:
            node = stack.pop()
            if node in seen or node not in reached:
                continue
            seen.add(node)
            origins[node] = tuple(dict.fromkeys((*origins.get(node, ()), *source)))
            if old in mapping:
                stack += [i for i in node.inputs if i not in standing and not i.op.has("leaf")]
    return origins
