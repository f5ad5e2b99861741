"""Recurrent states: what convolutions and scans carry from one step of a sequence to the next.

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
from ..ir.ops import recurrent
from ..ir.types import CacheType, TensorType

_STARTS = {recurrent.ragged_conv: 2, recurrent.ragged_scan: 4}
"""Which input of an op says where sequences start; behind it stand those that a scan may have."""


@dataclass(frozen=True)
class CacheStates:
    """Turn every ragged_conv and ragged_scan into one that goes on from states.

    The graph gains inputs (state_from i32[N], state_to i32[N], the states) and gives the states
    back as further outputs.
    """

    name: ClassVar[str] = "cache-states"

    def run(self, graph: Graph) -> Graph:
        """The graph with states; one without convolutions and scans is left as it is."""
        found = [n for n in graph.nodes() if n.op in _STARTS]
        if not found:
            return graph
        starts = found[0].inputs[_STARTS[found[0].op]]
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


def _state(node: Node) -> CacheType:
    """What a sequence carries from one step to the next."""
    if node.op is recurrent.ragged_conv:
        rows, columns = node.inputs[1].shape
        return CacheType(node.dtype, 0, (int(rows) - 1, int(columns)))
    heads, width = node.shape[1:]
    return CacheType("f32", 0, (int(heads), int(node.inputs[0].shape[2]), int(width)))


def _with_state(node: Node, state: Node, places: tuple[Node, Node]) -> Node:
    at = _STARTS[node.op]
    operands, starts, rest = node.inputs[:at], node.inputs[at], node.inputs[at + 1 :]
    op = recurrent.state_conv if node.op is recurrent.ragged_conv else recurrent.state_scan
    return op(*operands, state, starts, *places, *rest)
