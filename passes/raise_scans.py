"""Raise scans: a region that mixes tokens becomes linear_scan where its values are those of one.

Token rules find where tokens are first mixed by something that is no op of its own (running sums,
products over positions, chunks). Every path from there to the logits leads through some nodes, one
after the other; between the tokens' own values and the first of these that is a value of each token
again lies a region, a function of tokens. It is run on random numbers: which part each input plays
is seen from what changing it does (scan_roles.py), and the scan that the parts make must then have
the region's values at several lengths. No spelling is known here; of a decay that is an exponential
the exponent is what the scan is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import networkx as nx

from ..ir.graph import Graph
from ..ir.node import Node
from ..ir.rewrite import rewrite
from .prove_scan import Scan, scan_of
from .rules.decays import DECAYS
from .rules.movement import MOVEMENT
from .scan_regions import Region, Run, frontier, is_whole, token_axes
from .token_values import B, S
from .walk_tokens import TokenWalk

MOST_TRIES, MOST_INPUTS = 6, 12


@dataclass(frozen=True)
class RaiseScans:
    """Regions that mix tokens as a linear recurrence does become linear_scan.

    `run_part` evaluates parts of the graph; without it nothing is raised. `step` divides every
    length that the graph holds for.
    """

    name: ClassVar[str] = "raise-scans"
    run_part: Run | None = None
    step: int = 1

    def run(self, graph: Graph) -> Graph:
        """The graph with every scan as one op; what is none stays as it is."""
        if self.run_part is None or [i.shape for i in graph.inputs] != [(B, S)]:
            return rewrite(graph, DECAYS)
        known: dict[Any, Scan | None] = {}
        while found := _Finder(graph, self.run_part, self.step, known).found():
            graph = graph.replace(found)
        return rewrite(graph, MOVEMENT + DECAYS if known else DECAYS)


@dataclass
class _Finder:
    """One walk over a graph, inputs first."""

    graph: Graph
    run: Run
    step: int
    known: dict[Any, Scan | None]
    tries: dict[Node, int] = field(default_factory=dict[Node, int])

    def __post_init__(self) -> None:
        self.walk = TokenWalk(self.graph)
        self.through = post_dominators(self.graph)
        self.most = self.graph.bounds.get(str(S), (1, 1))[1]

    def found(self) -> dict[Node, Node]:
        """Nodes and the scans that they are; running sums only where no more was found, because
        most are a part of something larger."""
        mapping: dict[Node, Node] = {}
        sums: dict[Node, Node] = {}
        waiting: dict[Node, list[Node]] = {}  # a node -> where the mixing began that ends there
        for node in self.graph.nodes():
            if not self.walk.visit(node):
                continue
            begins = [*waiting.pop(node, []), *([] if self.walk.reads_mixed(node) else [node])]
            scan, made = self._raised(node, begins) or (None, None)
            if scan is not None and made is not None and not scan.is_sum:
                mapping[node] = made
                self.walk.settle(node)
                continue
            if made is not None:
                sums[node] = made
            if (after := self.through.get(node)) is not None:
                waiting.setdefault(after, []).extend(begins)
        return mapping or sums

    def _raised(self, node: Node, begins: Sequence[Node]) -> tuple[Scan, Node] | None:
        """The scan that a region up to a node is, where one of its beginnings has tries left."""
        left = [b for b in begins if self.tries.get(b, 0) < MOST_TRIES]
        axes = token_axes(node)
        if not left or not is_whole(axes) or not node.tensor.is_float:
            return None
        region = self._region(node)
        if region is None:
            return None
        for begin in left:
            self.tries[begin] = self.tries.get(begin, 0) + 1
        if region.key not in self.known:
            self.known[region.key] = scan_of(region, self.run, self.most)
        scan = self.known[region.key]
        return None if scan is None else (scan, region.outside(scan.node))

    def _region(self, node: Node) -> Region | None:
        inputs = frontier(node, self.walk.is_token)
        if not 1 <= len(inputs) <= MOST_INPUTS:
            return None
        each = [self.walk.tokens[i].axes for i in inputs]
        if not all(map(is_whole, each)) or not all(i.tensor.is_float for i in inputs):
            return None
        return Region.cut(node, inputs, each, self.step)


def post_dominators(graph: Graph) -> dict[Node, Node]:
    """For each node the next one that every path to an output leads through."""
    view: Any = graph.to_networkx().reverse()
    leave = "leave"
    view.add_edges_from((leave, o) for o in graph.outputs)
    algorithms: Any = nx
    found: dict[Any, Any] = algorithms.immediate_dominators(view, leave)
    return {n: d for n, d in found.items() if leave not in (n, d) and d is not None}
