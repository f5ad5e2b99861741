"""Kernel bodies in a form in which equal ones are equal."""

from __future__ import annotations

from ..ir.graph import Graph
from ..ir.node import input_


def canonical(body: Graph) -> Graph:
    """The body with its inputs named by place, so that the same kernel of two layers is the same
    graph.
    """
    renamed = {n: input_(name=f"x{i}", type=n.type) for i, n in enumerate(body.inputs)}
    temporary = {n: input_(name=f"_x{i}", type=n.type) for i, n in enumerate(body.inputs)}
    # In two steps, because an input may already bear another one's new name.
    first = Graph("kernel", tuple(temporary.values()), body.replace(temporary).outputs)
    second = first.replace({temporary[n]: renamed[n] for n in body.inputs})
    return Graph("kernel", tuple(renamed.values()), second.outputs)
