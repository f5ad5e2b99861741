"""Recurrent states: what convolutions, scans and loops carry from step to step of a sequence.

A state has a fixed size, whatever the length: one entry a sequence, beside the blocks that hold its
keys and values. It is read in one place and written to another, so that a step can go on from a
state that somebody else keeps (another sequence of the request, the prefix cache); where both
places are one it is updated in place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..ir.graph import Graph
from ..ir.node import Node, input_, item
from ..ir.ops import loops, recurrent
from ..ir.types import CacheType, TensorType

_WITH_STATE = {
    recurrent.ragged_conv: recurrent.state_conv,
    recurrent.ragged_scan: recurrent.state_scan,
    loops.ragged_loop: loops.state_loop,
}


@dataclass(frozen=True)
class CacheStates:
    """Turn every ragged_conv, ragged_scan and ragged_loop into one that goes on from states.

    The graph gains inputs (state_from i32[N], state_to i32[N], the states) and gives the states
    back as further outputs.
    """

    name: ClassVar[str] = "cache-states"

    def run(self, graph: Graph) -> Graph:
        """The graph with states; one without convolutions, scans and loops is left as it is."""
        found = [n for n in graph.nodes() if n.op in _WITH_STATE]
        if not found:
            return graph
        starts = found[0].inputs[_starts(found[0])]
        kind = TensorType("i32", (starts.shape[0] - 1,))
        places = tuple(input_(name=name, type=kind) for name in ("state_from", "state_to"))
        states = [input_(name=f"state{at}", type=_state(n)) for at, n in enumerate(found)]
        made = [_with_state(n, s, places) for n, s in zip(found, states, strict=True)]
        grown = graph.with_outputs(
            (*graph.outputs, *(item(m, index=1) for m in made)),
            (*graph.output_names, *(s["name"] for s in states)),
        )
        # The states' items stand for no old node: their op brings its place in the model's source.
        places_of = {m: graph.origin(n) for n, m in zip(found, made, strict=True)}
        grown = replace(grown, origins={**grown.origins, **places_of})
        mapping = {n: item(m, index=0) for n, m in zip(found, made, strict=True)}
        return replace(grown.replace(mapping), inputs=(*graph.inputs, *places, *states))


def _starts(node: Node) -> int:
    """Which input of an op says where sequences start; behind it stand what a scan may have, and
    what a loop begins with."""
    if node.op is loops.ragged_loop:
        return int(node["tokens"])
    return 2 if node.op is recurrent.ragged_conv else 4


def _state(node: Node) -> CacheType:
    """What a sequence carries from one step to the next."""
    if node.op is recurrent.ragged_conv:
        rows, columns = node.inputs[1].shape
        return CacheType(node.dtype, 0, (int(rows) - 1, int(columns)))
    if node.op is loops.ragged_loop:
        begun = node.inputs[_starts(node) + 1 :][: node["states"]]
        return loops.state_of(tuple(b.tensor for b in begun))
    heads, width = node.shape[1:]
    return CacheType("f32", 0, (int(heads), int(node.inputs[0].shape[2]), int(width)))


def _with_state(node: Node, state: Node, places: tuple[Node, Node]) -> Node:
    at = _starts(node)
    operands, starts, rest = node.inputs[:at], node.inputs[at], node.inputs[at + 1 :]
    return _WITH_STATE[node.op](*operands, state, starts, *places, *rest, **node.attributes)
