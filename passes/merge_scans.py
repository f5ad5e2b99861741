"""Merge scans: those that stand side by side become one, over the heads of all of them.

Some models take heads one after another, each with a recurrence of its own. A kernel spreads the
heads of a scan over the machine's cores: one scan of all heads is as much work in one kernel, and
one state a sequence in place of several.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..ir.dims import exact_quotient
from ..ir.graph import Graph
from ..ir.node import Node
from ..ir.ops import recurrent
from ..ir.ops import tensor as t

HEADS = 2  # which axis of q[B, S, G, K] and v[B, S, H, V]


@dataclass(frozen=True)
class MergeScans:
    """linear_scans of one shape a head, none of which reads another, become one and slices of its
    result.

    Left alone: one whose result is an output.
    """

    name: ClassVar[str] = "merge-scans"

    def run(self, graph: Graph) -> Graph:
        """The graph with one scan for those that as many scans stand before."""
        depth: dict[Node, int] = {}
        together: dict[tuple[object, ...], list[Node]] = {}
        for node in graph.nodes():
            before = max((depth[i] for i in node.inputs), default=0)
            is_scan = node.op is recurrent.linear_scan
            depth[node] = before + is_scan
            if is_scan and node not in graph.outputs:
                together.setdefault((before, *_kind(node)), []).append(node)
        mapping: dict[Node, Node] = {}
        for scans in together.values():
            if len(scans) > 1:
                mapping.update(_merged(scans))
        return graph.replace(mapping) if mapping else graph


def _kind(scan: Node) -> tuple[object, ...]:
    """What scans have in common that can be one: all but the number of their heads."""
    q, _, v, *_ = scan.inputs
    sizes = tuple((i.dtype, *i.shape[:HEADS], *i.shape[HEADS + 1 :]) for i in scan.inputs)
    return (exact_quotient(v.shape[HEADS], q.shape[HEADS]), sizes)


def _merged(scans: Sequence[Node]) -> Iterable[tuple[Node, Node]]:
    """Each scan as a slice of one over the heads of all, in order."""
    operands = zip(*(s.inputs for s in scans), strict=True)
    whole = recurrent.linear_scan(*(_joined(each, HEADS) for each in operands))
    begin = 0
    for scan in scans:
        end = begin + scan.shape[HEADS]
        yield scan, t.slice_(whole, axis=HEADS, start=begin, stop=end)
        begin = end


def _joined(parts: Sequence[Node], axis: int) -> Node:
    """Values side by side; where all are one function, elementwise, of such values, that function
    of those: then nothing is taken apart that was one before.
    """
    first = parts[0]
    alike = all(p.op is first.op and p.attributes == first.attributes for p in parts)
    if alike and first.op.has("elementwise"):
        columns = [[p.inputs[at] for p in parts] for at in range(len(first.inputs))]
        places = [_place(each, first, axis) for each in columns]
        if all(at is not None for at in places):
            made = [
                each[0] if at is None or at < 0 else _joined(each, at)
                for each, at in zip(columns, places, strict=True)
            ]
            return first.op.build(tuple(made), first.attributes)
    return t.concat(*parts, axis=axis)


def _place(each: Sequence[Node], node: Node, axis: int) -> int | None:
    """On which of their axes operands are side by side; below 0 where they are one that is the
    same along it; None where they are neither.
    """
    own = axis - len(node.shape) + len(each[0].shape)
    if any(len(x.shape) != len(each[0].shape) for x in each):
        return None
    if own >= 0 and all(x.shape[own] != 1 for x in each):
        return own
    return -1 if all(x is each[0] for x in each) else None
