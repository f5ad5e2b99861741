"""Graphs: what a program computes, from inputs and parameters to named outputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import networkx as nx
import sympy

from .dims import Dim, substitute
from .errors import IRError
from .node import Node, walk
from .types import Type, substitute_type

Origins = Mapping[Node, tuple[str, ...]]


@dataclass(frozen=True, eq=False)
class Graph:
    """A program: inputs, outputs (dead code is what no output reaches), bounds of its dims, origins of its nodes.

    `bounds` gives each named dim its (lowest, highest) value. `origins` is a side table from a node to the places in the
    model's source that it came from; it is no part of a graph's identity.
    """

    name: str
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    output_names: tuple[str, ...] = ()
    bounds: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    origins: Origins = field(default_factory=dict[Node, tuple[str, ...]])

    def __post_init__(self) -> None:
        names = self.output_names or tuple(f"out{i}" for i in range(len(self.outputs)))
        if len(names) != len(self.outputs):
            raise IRError(f"{len(self.outputs)} outputs and {len(names)} names for them")
        object.__setattr__(self, "output_names", names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Graph) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @functools.cached_property
    def _identity(self) -> tuple[object, ...]:
        bounds = tuple(sorted(self.bounds.items()))
        return (self.name, self.inputs, self.outputs, self.output_names, bounds)

    @functools.cached_property
    def _nodes(self) -> tuple[Node, ...]:
        return tuple(walk(self.outputs))

    def nodes(self) -> tuple[Node, ...]:
        """Every node that an output reaches, inputs before users."""
        return self._nodes

    def parameters(self) -> tuple[Node, ...]:
        """The parameter nodes that an output reaches."""
        return tuple(n for n in self._nodes if n.op.name == "parameter")

    @functools.cached_property
    def _users(self) -> dict[Node, tuple[Node, ...]]:
        users: dict[Node, list[Node]] = {n: [] for n in self._nodes}
        for node in self._nodes:
            for value in dict.fromkeys(node.inputs):
                users[value].append(node)
        return {n: tuple(u) for n, u in users.items()}

    def users(self, node: Node) -> tuple[Node, ...]:
        """The nodes that read a node, each once."""
        return self._users.get(node, ())

    def output(self, name: str) -> Node:
        """The output with this name."""
        if name not in self.output_names:
            raise IRError(f"no output {name!r}; outputs: {', '.join(self.output_names)}")
        return self.outputs[self.output_names.index(name)]

    def origin(self, node: Node) -> tuple[str, ...]:
        """Where a node came from, as far as that is known."""
        return self.origins.get(node, ())

    def with_outputs(self, outputs: Iterable[Node], names: tuple[str, ...] | None = None) -> Graph:
        """The same inputs with other outputs."""
        return replace(self, outputs=tuple(outputs), output_names=self.output_names if names is None else names)

    def replace(self, mapping: Mapping[Node, Node]) -> Graph:
        """The graph with nodes replaced; what a replaced node came from goes with its replacement.

        A replacement may use nodes of the graph, replaced ones too: they are replaced inside it, except that a node inside
        its own replacement stands for itself.
        """
        return _Replacer(self, mapping).run()

    def substitute(self, values: Mapping[str, Dim]) -> Graph:
        """The graph with named dims replaced by other dims, in types and attributes."""
        fixed = rebuild(self, lambda node, inputs: _with_dims(node, inputs, values))
        left = {name: bound for name, bound in fixed.bounds.items() if name not in values}
        return replace(fixed, bounds=left)

    def to_networkx(self) -> nx.DiGraph:
        """The nodes and the edges from input to user."""
        view: nx.DiGraph = nx.DiGraph()
        view.add_nodes_from(self._nodes)
        view.add_edges_from((i, n) for n in self._nodes for i in n.inputs)
        return view


def rebuild(graph: Graph, build: Callable[[Node, tuple[Node, ...]], Node]) -> Graph:
    """The graph with each node built anew from its new inputs by build(node, inputs), origins kept."""
    done: dict[Node, Node] = {}
    for node in graph.nodes():
        done[node] = build(node, tuple(done[i] for i in node.inputs))
    for value in graph.inputs:
        if value not in done:
            done[value] = build(value, ())
    return _finished(graph, done)


class _Replacer:
    """Rebuilds a graph under a mapping, one node at a time, inputs first."""

    def __init__(self, graph: Graph, mapping: Mapping[Node, Node]) -> None:
        self.graph, self.mapping = graph, mapping
        self.done: dict[Node, Node] = {}

    def run(self) -> Graph:
        for node in self.graph.nodes():
            self._resolve(node)
        for value in self.graph.inputs:
            self._resolve(value)
        return _finished(self.graph, self.done)

    def _resolve(self, node: Node) -> None:
        """Fill done[node]; everything that its replacement needs is resolved first."""
        stack: list[tuple[Node, Node | None]] = [(node, None)]
        open_: set[Node] = set()
        while stack:
            current, finish = stack.pop()
            if finish is not None:
                self.done[current] = self._inside(finish, current)
                continue
            if current in self.done:
                continue
            target = self.mapping.get(current, current)
            needs = [n for n in _frontier(target, self.done, current) if n not in open_]
            if current in open_ or not needs:
                self.done[current] = self._inside(target, current)
                continue
            open_.add(current)
            stack.append((current, target))
            stack.extend((n, None) for n in needs)

    def _inside(self, target: Node, itself: Node) -> Node:
        """The replacement of `itself`, with resolved nodes in place of the graph's."""
        if target in self.done and target is not itself:
            return self.done[target]
        new: dict[Node, Node] = {}
        for node in _walk_until(target, self.done, itself):
            new[node] = node.with_inputs(tuple(new.get(i) or self.done[i] for i in node.inputs))
        return new[target]


def _walk_until(root: Node, done: Mapping[Node, Node], itself: Node) -> list[Node]:
    """The nodes that root reaches without passing through resolved ones, inputs first."""
    order: list[Node] = []
    seen: set[Node] = set()
    stack: list[tuple[Node, bool]] = [(root, False)]
    while stack:
        node, leave = stack.pop()
        if leave:
            order.append(node)
        elif node not in seen and (node not in done or node is itself):
            seen.add(node)
            stack.append((node, True))
            stack.extend((i, False) for i in reversed(node.inputs))
    return order


def _frontier(target: Node, done: Mapping[Node, Node], itself: Node) -> list[Node]:
    """The inputs that must be resolved before `target` can be built: every unresolved node below it but the fresh ones."""
    below = _walk_until(target, done, itself)
    return [n for n in below if n is not itself and n is not target]


def _finished(graph: Graph, done: Mapping[Node, Node]) -> Graph:
    inputs = tuple(done[i] for i in graph.inputs)
    outputs = tuple(done[o] for o in graph.outputs)
    origins = _carried(graph, done, set(walk((*outputs, *inputs))))
    return replace(graph, inputs=inputs, outputs=outputs, origins=origins)


def _carried(graph: Graph, done: Mapping[Node, Node], reached: set[Node]) -> dict[Node, tuple[str, ...]]:
    """The origins of the reached nodes: what stands for a node, and what was made for it, inherits the node's origin."""
    origins = {n: o for n, o in graph.origins.items() if n in reached}
    known = set(graph.nodes())
    for old, new in done.items():
        source = graph.origin(old)
        stack = [new] if source and new is not old else []
        while stack:
            node = stack.pop()
            if (node in known and node is not new) or node.op.has("leaf") or node not in reached:
                continue
            merged = tuple(dict.fromkeys((*origins.get(node, ()), *source)))
            if merged == origins.get(node):
                continue
            if node is not new and node in origins:
                continue
            origins[node] = merged
            stack.extend(node.inputs)
    return origins


def _with_dims(node: Node, inputs: tuple[Node, ...], values: Mapping[str, Dim]) -> Node:
    attributes = {k: _substitute_value(v, values) for k, v in node.attributes.items()}
    return node.op.build(inputs, attributes)


def _substitute_value(value: object, values: Mapping[str, Dim]) -> object:
    if isinstance(value, tuple):
        return tuple(_substitute_value(v, values) for v in value)
    if isinstance(value, Graph):
        return value.substitute(values)
    if isinstance(value, sympy.Expr):
        return substitute(value, values)
    return substitute_type(value, values) if isinstance(value, Type) else value
