"""A walk over a captured graph that says which of its nodes are values of each token."""

from __future__ import annotations

from collections.abc import Sequence

from ..ir.errors import IRError
from ..ir.graph import Graph
from ..ir.node import Node, input_
from ..ir.ops import tensor as t
from ..ir.types import TensorType
from .analyze_tokens import analyze
from .scan_regions import token_axes
from .token_rules import Operand, broadcast, rule_for
from .token_values import Axis, B, MixesTokensError, S, T, TokenValue, as_token, numbers_of

SEQUENCE_WISE = frozenset(
    {"attention", "causal_conv", "linear_scan", "token_loop", "token_context"}
)


class TokenWalk:
    """The values of each token of a graph, found node by node, inputs first.

    `visit` has to see the nodes in the graph's order. A node that mixes tokens, and what comes of
    it, is no value of each token, unless it is an op of its own or `settle` says otherwise.
    """

    def __init__(self, graph: Graph) -> None:
        self.kinds = analyze(graph).kinds
        self.tokens: dict[Node, TokenValue] = {}
        self.mixed: set[Node] = set()
        for given in graph.inputs:
            self.tokens[given] = _fresh(((B,), (S,)), given.dtype)

    def visit(self, node: Node) -> bool:
        """Whether a node mixes tokens, or comes of what does."""
        if self.kinds[node] != "token" or node in self.tokens:
            return False
        value = self._value(node)
        if value is None:
            self.mixed.add(node)
            return True
        self.tokens[node] = value
        return False

    def settle(self, node: Node) -> None:
        """Take a node for a value of each token, whatever made it."""
        self.mixed.discard(node)
        self.tokens[node] = _fresh(token_axes(node) or (), node.dtype)

    def is_token(self, node: Node) -> bool:
        """Whether a node is a value of each token."""
        return node in self.tokens and self.kinds[node] == "token"

    def reads_mixed(self, node: Node) -> bool:
        """Whether one of a node's inputs mixes tokens."""
        return any(i in self.mixed for i in node.inputs)

    def _value(self, node: Node) -> TokenValue | None:
        """The value of each token that a node is; None where tokens are mixed."""
        if self.reads_mixed(node):
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


def _fresh(axes: Sequence[Axis], dtype: str) -> TokenValue:
    """A value of each token with these axes, whatever it is."""
    shape = (T, *numbers_of(axes))
    return TokenValue(input_(name="value", type=TensorType(dtype, shape)), tuple(axes))
