"""The verifier: infers every type again, quotes the line and the model source of what is wrong."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from .dims import names_in
from .errors import IRError
from .graph import Graph
from .node import Node
from .text import node_lines
from .types import TensorType, TupleType, Type


def verify(graph: Graph) -> Graph:
    """The graph itself, if it is well formed.

    Raises IRError naming the node, its line and the model's source otherwise.
    """
    _check_inputs(graph)
    _check_bounds(graph)
    for node in graph.nodes():
        _check_bodies(graph, node)
        _check_type(graph, node)
    _check_dims(graph)
    return graph


def check_leaves(graph: Graph, allowed: Iterable[str], phase: str) -> None:
    """Refuse ops that may not remain after a phase, each by name, with the first place of each."""
    names = set(allowed)
    left: dict[str, Node] = {}
    for node in graph.nodes():
        if node.op.name not in names:
            left.setdefault(node.op.name, node)
    if left:
        places = "\n".join(quote(graph, n) for n in left.values())
        raise IRError(f"after phase {phase!r} these ops remain: {', '.join(left)}\n{places}")


def quote(graph: Graph, node: Node) -> str:
    """The node's line, with where it came from."""
    at = 2  # the first line is the graph's own
    for other, text in node_lines(graph).items():
        if other is node:
            return f"  line {at}: {text.strip()}"
        at += text.count("\n") + 1
    return f"  {node.op.name} : {node.type}"


def _check_type(graph: Graph, node: Node) -> None:
    try:
        inferred = node.op.infer(node.inputs, node.attributes)
    except IRError as error:
        raise IRError(f"{error}\n{quote(graph, node)}") from None
    if inferred != node.type:
        raise IRError(f"{node.op.name} gives {inferred}, not {node.type}\n{quote(graph, node)}")


def _check_bodies(graph: Graph, node: Node) -> None:
    """Verify the graphs inside a node's attributes, whose dims are those of the graph around."""
    for body in node.attributes.values():
        if not isinstance(body, Graph):
            continue
        try:
            verify(replace(body, bounds={**graph.bounds, **body.bounds}))
        except IRError as error:
            raise IRError(f"{error}\nin the body of\n{quote(graph, node)}") from None


def _check_inputs(graph: Graph) -> None:
    made = [n for n in graph.inputs if n.op.name != "input"]
    if made:
        raise IRError(f"inputs of {graph.name} that are no inputs: {made}")
    free = [n for n in graph.nodes() if n.op.name == "input" and n not in graph.inputs]
    if free:
        names = ", ".join(n["name"] for n in free)
        raise IRError(f"inputs used but not declared by {graph.name}: {names}")
    names = [n["name"] for n in graph.inputs]
    if len(set(names)) != len(names):
        raise IRError(f"inputs of {graph.name} share a name: {', '.join(names)}")
    parameters: dict[str, Node] = {}
    for node in graph.parameters():
        other = parameters.setdefault(node["name"], node)
        if other is not node:
            raise IRError(f"parameter {node['name']!r} is both {other.type} and {node.type}")


def _check_bounds(graph: Graph) -> None:
    for name, (low, high) in graph.bounds.items():
        if not 1 <= low <= high:
            raise IRError(f"dim {name} of {graph.name} has bounds [{low}, {high}]")


def _check_dims(graph: Graph) -> None:
    for node in dict.fromkeys((*graph.nodes(), *graph.inputs)):
        unknown = _dims_of(node.type) - graph.bounds.keys()
        if unknown:
            known = ", ".join(sorted(graph.bounds)) or "none"
            where = quote(graph, node)
            raise IRError(f"dims {sorted(unknown)} have no bounds; known: {known}\n{where}")


def _dims_of(t: Type) -> frozenset[str]:
    if isinstance(t, TensorType):
        return frozenset(name for d in t.shape if not isinstance(d, int) for name in names_in(d))
    if isinstance(t, TupleType):
        return frozenset(name for i in t.items for name in _dims_of(i))
    return frozenset()
