"""The verifier: infers every type again, and quotes the line and the model source of what is wrong."""

from __future__ import annotations

from collections.abc import Iterable

from .dims import names_in
from .errors import IRError
from .graph import Graph
from .node import Node
from .text import node_lines
from .types import TensorType, TupleType, Type


def verify(graph: Graph) -> Graph:
    """The graph itself, if it is well formed; raises IRError naming the node, its line and the model's source otherwise."""
    for node in graph.nodes():
        _check_type(graph, node)
    _check_inputs(graph)
    _check_dims(graph)
    return graph


def check_leaves(graph: Graph, allowed: Iterable[str], phase: str) -> None:
    """Refuse ops that may not remain after a phase, each by name, with the first place where it stands."""
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
    lines = node_lines(graph)
    if node not in lines:
        return f"  {node.op.name} : {node.type}"
    return f"  line {list(lines).index(node) + 2}: {lines[node]}"


def _check_type(graph: Graph, node: Node) -> None:
    try:
        inferred = node.op.infer(node.inputs, node.attributes)
    except IRError as error:
        raise IRError(f"{error}\n{quote(graph, node)}") from None
    if str(inferred) != str(node.type):
        raise IRError(f"{node.op.name} gives {inferred}, not {node.type}\n{quote(graph, node)}")


def _check_inputs(graph: Graph) -> None:
    free = [n for n in graph.nodes() if n.op.name == "input" and n not in graph.inputs]
    if free:
        raise IRError(f"inputs used but not declared by {graph.name}: {', '.join(n['name'] for n in free)}")
    parameters: dict[str, Node] = {}
    for node in graph.parameters():
        other = parameters.setdefault(node["name"], node)
        if other is not node:
            raise IRError(f"parameter {node['name']!r} is both {other.type} and {node.type}")


def _check_dims(graph: Graph) -> None:
    for node in graph.nodes():
        unknown = _dims_of(node.type) - graph.bounds.keys()
        if unknown:
            known = ", ".join(sorted(graph.bounds)) or "none"
            raise IRError(f"dims {sorted(unknown)} have no bounds; known: {known}\n{quote(graph, node)}")


def _dims_of(t: Type) -> frozenset[str]:
    if isinstance(t, TupleType):
        return frozenset().union(*(_dims_of(i) for i in t.items))
    return frozenset().union(*(names_in(d) for d in t.shape)) if isinstance(t, TensorType) else frozenset()
