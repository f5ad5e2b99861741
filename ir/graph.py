"""Graphs: what a program computes, from inputs and parameters to named outputs."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import networkx as nx
import sympy

from .dims import Dim, substitute
from .errors import IRError
from .node import Node, walk
from .replacing import replaced
from .types import Type, substitute_type

Origins = Mapping[Node, tuple[str, ...]]
_NAME = re.compile(r"[\w.\-]+")


@dataclass(frozen=True, eq=False)
class Graph:
    """A program: inputs, outputs (dead code is what no output reaches), bounds, origins.

    `bounds` gives each named dim its (lowest, highest) value. `origins` is a side table from a node
    to the places in the model's source that it came from; it is no part of a graph's identity.
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
        for name in (self.name, *names):
            if not _NAME.fullmatch(name):
                raise IRError(f"letters, digits, dots, dashes make a name, not {name!r}")
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

    def constants(self) -> set[Node]:
        """The nodes that depend on parameters and constants alone: no input is behind them."""
        found: set[Node] = set()
        for node in self._nodes:
            if node.op.name != "input" and all(i in found for i in node.inputs):
                found.add(node)
        return found

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
        names = self.output_names if names is None else names
        return replace(self, outputs=tuple(outputs), output_names=names)

    def replace(self, mapping: Mapping[Node, Node]) -> Graph:
        """The graph with nodes replaced; what a replaced node came from goes with its replacement.

        A replacement may use nodes of the graph, replaced ones too: they are replaced inside it,
        except that a node, and what depends on it, stands for itself inside its own replacement.
        Replacements that use each other in a circle are refused.
        """
        return replaced(self, mapping)

    def substitute(self, values: Mapping[str, Dim]) -> Graph:
        """The graph with named dims replaced by other dims, in types and attributes."""
        fixed = rebuild(self, lambda node, inputs: with_dims(node, inputs, values))
        left = {name: bound for name, bound in fixed.bounds.items() if name not in values}
        return replace(fixed, bounds=left)

    def to_networkx(self) -> nx.DiGraph[Node]:
        """The nodes and the edges from input to user."""
        view: nx.DiGraph[Node] = nx.DiGraph()
        view.add_nodes_from(self._nodes)
        view.add_edges_from((i, n) for n in self._nodes for i in n.inputs)
        return view


def rebuild(graph: Graph, build: Callable[[Node, tuple[Node, ...]], Node]) -> Graph:
    """The graph with each node built anew by build(node, its new inputs), origins kept."""
    done: dict[Node, Node] = {}
    for node in graph.nodes():
        done[node] = build(node, tuple(done[i] for i in node.inputs))
    for value in graph.inputs:
        if value not in done:
            done[value] = build(value, ())
    return _finished(graph, done)


def _finished(graph: Graph, done: Mapping[Node, Node]) -> Graph:
    inputs = tuple(done[i] for i in graph.inputs)
    outputs = tuple(done[o] for o in graph.outputs)
    origins: dict[Node, tuple[str, ...]] = {}
    for old, source in graph.origins.items():
        new = done.get(old)
        if new is not None:
            origins[new] = tuple(dict.fromkeys((*origins.get(new, ()), *source)))
    return replace(graph, inputs=inputs, outputs=outputs, origins=origins)


def with_dims(node: Node, inputs: tuple[Node, ...], values: Mapping[str, Dim]) -> Node:
    """The node on other inputs, its named dims replaced by other dims."""
    attributes = {k: _substitute_value(v, values) for k, v in node.attributes.items()}
    return node.op.build(inputs, attributes)


def _substitute_value(value: object, values: Mapping[str, Dim]) -> object:
    if isinstance(value, tuple):
        return tuple(_substitute_value(v, values) for v in cast(tuple[object, ...], value))
    if isinstance(value, Graph):
        return value.substitute(values)
    if isinstance(value, sympy.Expr):
        return substitute(value, values)
    return substitute_type(value, values) if isinstance(value, Type) else value
