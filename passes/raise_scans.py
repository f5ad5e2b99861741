"""Raise scans: a region that mixes tokens becomes linear_scan where its values are those of one.

Token rules find where tokens are first mixed by something that is no op of its own (running sums,
products over positions, chunks). Every path from there to the logits leads through some nodes, one
after the other; between the tokens' own values and the first of these that is a value of each token
again lies a region, a function of tokens. It is run on random numbers: which part each input plays
is seen from what changing it does (scan_roles.py), and the scan that the parts make must then have
the region's values at several lengths. No spelling is known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import networkx as nx

from ..ir.dims import equal, product
from ..ir.errors import IRError
from ..ir.graph import Graph
from ..ir.node import Node, input_
from ..ir.ops import tensor as t
from ..ir.rewrite import rewrite
from ..ir.types import TensorType
from .analyze_tokens import analyze
from .prove_scan import Scan, scan_of
from .rules.movement import MOVEMENT
from .scan_regions import Region, Run, is_whole, token_axes
from .token_rules import Operand, broadcast, rule_for
from .token_values import Axis, B, MixesTokensError, S, T, TokenValue, as_token, numbers_of

MOST_TRIES, MOST_INPUTS = 6, 12
SEQUENCE_WISE = frozenset({"attention", "causal_conv", "linear_scan"})


@dataclass(frozen=True)
class RaiseScans:
    """Regions that mix tokens as a linear recurrence does become linear_scan.

    `run_part` evaluates parts of the graph; without it nothing is raised.
    """

    name: ClassVar[str] = "raise-scans"
    run_part: Run | None = None

    def run(self, graph: Graph) -> Graph:
        """The graph with every scan as one op; what is none stays as it is."""
        if self.run_part is None or [i.shape for i in graph.inputs] != [(B, S)]:
            return graph
        known: dict[Any, Scan | None] = {}
        while found := _Finder(graph, self.run_part, known).found():
            graph = graph.replace(found)
        return rewrite(graph, MOVEMENT) if known else graph


@dataclass
class _Finder:
    """One walk over a graph, inputs first."""

    graph: Graph
    run: Run
    known: dict[Any, Scan | None]
    tokens: dict[Node, TokenValue] = field(default_factory=dict[Node, TokenValue])
    mixed: set[Node] = field(default_factory=set[Node])
    tries: dict[Node, int] = field(default_factory=dict[Node, int])

    def __post_init__(self) -> None:
        self.kinds = analyze(self.graph).kinds
        self.through = _post_dominators(self.graph)

    def found(self) -> dict[Node, Node]:
        """Nodes and the scans that they are; running sums only where no more was found, because
        most are a part of something larger."""
        mapping: dict[Node, Node] = {}
        sums: dict[Node, Node] = {}
        waiting: dict[Node, list[Node]] = {}  # a node -> where the mixing began that ends there
        for given in self.graph.inputs:
            self.tokens[given] = _fresh(((B,), (S,)), given.dtype)
        for node in self.graph.nodes():
            if self.kinds[node] != "token" or node in self.tokens:
                continue
            value = self._value(node)
            if value is not None:
                self.tokens[node] = value
                continue
            begins = [*waiting.pop(node, []), *([] if self._is_mixed(node) else [node])]
            self.mixed.add(node)
            scan, made = self._raised(node, begins) or (None, None)
            if scan is not None and made is not None and not scan.is_sum:
                mapping[node] = made
                self.mixed.discard(node)
                self.tokens[node] = _fresh(token_axes(node) or (), node.dtype)
                continue
            if made is not None:
                sums[node] = made
            if (after := self.through.get(node)) is not None:
                waiting.setdefault(after, []).extend(begins)
        return mapping or sums

    def _is_mixed(self, node: Node) -> bool:
        return any(i in self.mixed for i in node.inputs)

    def _value(self, node: Node) -> TokenValue | None:
        """The value of each token that a node is; None where tokens are mixed."""
        if self._is_mixed(node):
            return None
        if node.op.name in SEQUENCE_WISE:
            axes = token_axes(node)
            return None if axes is None else _fresh(axes, node.dtype)
        try:
            value = rule_for(node)(node, [self._operand(i) for i in node.inputs])
        except (MixesTokensError, IRError):
            return None
        is_tuple = not isinstance(node.type, TensorType)
        return value if is_tuple else _fresh(value.axes, node.dtype)

    def _operand(self, node: Node) -> Operand:
        """A value of each token; one of positions alone too, where it has one axis of them."""
        if node in self.tokens:
            return self.tokens[node]
        if self.kinds[node] == "position":
            axes = token_axes(node)
            if axes is not None and any(S in axis for axis in axes):
                return _fresh(axes, node.dtype)
            if node.op is t.broadcast and self.kinds[node.inputs[0]] == "constant":
                return broadcast(node, [as_token(node.inputs[0])])
        return node

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
            self.known[region.key] = scan_of(region, self.run)
        scan = self.known[region.key]
        return None if scan is None else (scan, region.outside(scan.node))

    def _is_token(self, node: Node) -> bool:
        return node in self.tokens and self.kinds[node] == "token"

    def _factors(self, node: Node) -> list[Node]:
        """The node, or the smaller values whose product it is: of keys and values, for one."""
        if node.op is not t.mul or not all(self._is_token(i) for i in node.inputs):
            return [node]
        sizes = [product(i.shape) for i in node.inputs]
        return [node] if any(equal(d, product(node.shape)) for d in sizes) else list(node.inputs)

    def _region(self, node: Node) -> Region | None:
        frontier: dict[Node, None] = {}
        stack, seen = [node], {node}
        while stack:
            for value in stack.pop().inputs:
                if value in seen:
                    continue
                seen.add(value)
                if self._is_token(value):
                    frontier |= dict.fromkeys(self._factors(value))
                else:
                    stack.append(value)
        inputs = tuple(frontier)
        if not 1 <= len(inputs) <= MOST_INPUTS:
            return None
        each = [self.tokens[i].axes for i in inputs]
        if not all(map(is_whole, each)) or not all(i.tensor.is_float for i in inputs):
            return None
        return Region.cut(node, inputs, each)


def _post_dominators(graph: Graph) -> dict[Node, Node]:
    """For each node the next one that every path to an output leads through."""
    view: Any = graph.to_networkx().reverse()
    leave = "leave"
    view.add_edges_from((leave, o) for o in graph.outputs)
    algorithms: Any = nx
    found: dict[Any, Any] = algorithms.immediate_dominators(view, leave)
    return {n: d for n, d in found.items() if leave not in (n, d) and d is not None}


def _fresh(axes: Sequence[Axis], dtype: str) -> TokenValue:
    """A value of each token with these axes, whatever it is."""
    shape = (T, *numbers_of(axes))
    return TokenValue(input_(name="value", type=TensorType(dtype, shape)), tuple(axes))
