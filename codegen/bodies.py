"""Kernel bodies in a form in which equal ones are equal."""

from __future__ import annotations

from ..ir.graph import Graph
from ..ir.node import Node, input_
from ..ir.ops import tensor


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


def apart(body: Graph) -> Graph:
    """The body with outputs that are neither one another nor inputs."""
    outputs: list[Node] = []
    for node in body.outputs:
        while node in outputs or node.op.has("leaf"):
            node = tensor.broadcast(node, shape=node.shape)
        outputs.append(node)
    return body.with_outputs(outputs)
