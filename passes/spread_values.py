"""Values that are spread out of smaller ones: outer products, factors by token and by weight.

Such a value takes more memory than all that it is made of. A template that says so (`redone`) makes
its elements as it reads them, and nothing is written: in a state space of N rows a head, keys and
decays of every token would be N times as large as what they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..ir.dims import product
from ..ir.graph import Graph
from ..ir.node import Node
from ..ir.types import TensorType
from .backends import Template

LEAST = 4
"""How many times as large as its parts a value has to be."""
_TYPICAL = 64  # what a symbolic dim counts as: only the ratio matters
_FREE = frozenset({"constant", "iota", "dim_value"})


def spread_values(
    graph: Graph, anchors: Mapping[Node, Template], is_carried: Callable[[Node], bool]
) -> frozenset[Node]:
    """The nodes that anchors make anew as they read them; `is_carried`: what costs nothing there
    anyway, such as movement.
    """
    place = {n: i for i, n in enumerate(graph.nodes())}
    found: set[Node] = set()
    for anchor, template in anchors.items():
        for value in anchor.inputs if template.redone else ():
            found |= _tree(graph, place, anchor, value, template, is_carried)
    return frozenset(found)


def _tree(
    graph: Graph,
    place: Mapping[Node, int],
    anchor: Node,
    value: Node,
    template: Template,
    is_carried: Callable[[Node], bool],
) -> set[Node]:
    """The nodes between an operand and its parts, where it is spread out of these; none of them is
    read by anything else.
    """
    inside: set[Node] = {anchor}
    parts: set[Node] = set()
    waiting = {value}
    while waiting:
        node = max(waiting, key=place.__getitem__)  # its users come first
        waiting.remove(node)
        if node.op.name in _FREE:
            continue
        own = inside.issuperset(graph.users(node)) and node not in graph.outputs
        if own and (node.op.name in template.redone or is_carried(node)):
            inside.add(node)
            waiting.update(node.inputs)
        else:
            parts.add(node)
    made = {n for n in inside - {anchor} if n.op.name in template.redone}
    return made if made and _size(value) >= LEAST * sum(map(_size, parts)) else set()


def _size(node: Node) -> int:
    """Elements of a value."""
    if not isinstance(node.type, TensorType):
        return 0
    return int(product(d if isinstance(d, int) else _TYPICAL for d in node.shape))
