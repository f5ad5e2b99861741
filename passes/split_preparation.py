"""Weight preparation: what depends on parameters alone is split off as a graph of its own,
evaluated when the model is compiled.

    step, preparation = split_preparation(graph)

`preparation` has one output for each weight that the step graph reads in another form than the
checkpoint's; the step graph has a parameter of that name in its place. Outputs do not depend on
each other: each can be evaluated, written and dropped.
"""

from __future__ import annotations

from typing import NamedTuple

from ..ir.dims import names_in
from ..ir.graph import Graph
from ..ir.node import Node, parameter, walk
from ..ir.types import TensorType

# What a kernel makes for nothing as it reads: not worth a weight of its own.
_FREE = frozenset({"constant", "iota", "reshape", "transpose", "broadcast", "slice", "cast"})


class Split(NamedTuple):
    """A step graph, and the graph that prepares its weights."""

    step: Graph
    preparation: Graph


def split_preparation(graph: Graph) -> Split:
    """The step graph over prepared weights, and the preparation graph, whose outputs are these
    weights by name.
    """
    constant = constants_of(graph)
    prepared = [n for n in _border(graph, constant) if not _is_free(n)]
    names = _names(prepared)
    mapping = {n: parameter(name=names[n], type=n.type) for n in prepared}
    preparation = Graph(
        f"{graph.name}_preparation", (), tuple(prepared), tuple(names.values()),
        origins={n: graph.origin(n) for n in walk(tuple(prepared)) if graph.origin(n)},
    )  # fmt: skip
    return Split(graph.replace(mapping), preparation)


def constants_of(graph: Graph) -> frozenset[Node]:
    """The nodes that depend on no input and on no symbolic dim."""
    found: set[Node] = set()
    for node in graph.nodes():
        fixed = not isinstance(node.type, TensorType) or not any(names_in(d) for d in node.shape)
        if node.op.name not in ("input", "dim_value") and fixed and found.issuperset(node.inputs):
            found.add(node)
    return frozenset(found)


def _border(graph: Graph, constant: frozenset[Node]) -> list[Node]:
    """The constant values that the step reads, seen through views where a kernel can read through
    them.

    A broadcast is left to the step, since it only adds bytes; so is any other view of a value that
    the step reads anyway. Contractions want their weights as they lie.
    """
    fixed = {
        i for n in graph.nodes() if n not in constant and n.op.has("contraction") for i in n.inputs
    }
    read = {i for n in graph.nodes() if n not in constant for i in n.inputs if i in constant}
    read |= {o for o in graph.outputs if o in constant}
    while True:
        sunk = {n for n in read - fixed if n.op.name == "broadcast" or _views_one_of(read, n)}
        if not sunk:
            return [n for n in graph.nodes() if n in read and n.op.name != "parameter"]
        read = (read - sunk) | {n.inputs[0] for n in sunk}


def _views_one_of(read: set[Node], node: Node) -> bool:
    while node.op.name in ("reshape", "transpose", "slice", "broadcast"):
        node = node.inputs[0]
        if node in read:
            return True
    return False


def _is_free(node: Node) -> bool:
    return all(n.op.name in _FREE for n in walk((node,)))


def _names(prepared: list[Node]) -> dict[Node, str]:
    """A name for each: its place in the order, and the first parameter that it is made from."""
    return {n: f"w{at}.{_first_parameter(n)}" for at, n in enumerate(prepared)}


def _first_parameter(node: Node) -> str:
    return next((n["name"] for n in walk((node,)) if n.op.name == "parameter"), "constant")
