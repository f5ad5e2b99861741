"""Flatten: f(ids[B, S]) -> logits[B, S, V] becomes f(tokens[T], positions[T], query_start[N + 1])
-> logits[T, V].

Every value is followed from the ids on by its factors of batch and length (token_values.py); an op
that keeps tokens apart is done on [T, ...], attention, convolutions and scans become ragged, and
anything else is refused by name and place. This is the proof that the graph may be served in ragged
batches: no step of it assumes anything about the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..ir.dims import dim
from ..ir.errors import IRError
from ..ir.graph import Graph
from ..ir.node import Node, input_
from ..ir.ops import model, tensor
from ..ir.types import TensorType
from ..ir.verify import quote
from .analyze_tokens import analyze
from .recurrent_rules import RULES as RECURRENT
from .tabulate_positions import POSITIONS
from .token_rules import Operand, attention, broadcast, rule_for, selected_keys
from .token_values import (
    WHAT_TO_WRITE,
    B,
    MixesTokensError,
    S,
    T,
    TokenValue,
    aligned,
    as_token,
)

N = dim("N")
_SEQUENCE_WISE = {"attention": attention, "selected_keys": selected_keys, **RECURRENT}


@dataclass(frozen=True)
class FlattenTokens:
    """The graph over ragged batches of at most `max_tokens` tokens in `max_batch` sequences.

    Attention to later tokens is refused unless the batches are of whole sequences
    (`whole_sequences`): no token of a sequence is then in another step. Wants input ids [B, S] and,
    where position values were tabulated, positions [S]; logits [B, S, V] as the output.
    """

    name: ClassVar[str] = "flatten-tokens"
    max_tokens: int = 512
    max_batch: int = 64
    whole_sequences: bool = False

    def run(self, graph: Graph) -> Graph:
        """The flattened graph; raises IRError naming the op that mixes tokens and the model's
        source line."""
        bounds = {"T": (1, self.max_tokens), "N": (1, self.max_batch)}
        return _Flattener(graph, bounds, whole=self.whole_sequences).run()


class _Flattener:
    """One run over one graph."""

    def __init__(self, graph: Graph, bounds: dict[str, tuple[int, int]], *, whole: bool) -> None:
        self.graph, self.bounds, self.whole = graph, bounds, whole
        self.kinds = analyze(graph).kinds
        self.done: dict[Node, Operand] = {}
        self.origins: dict[Node, tuple[str, ...]] = {}
        self.query_start = input_(name="query_start", type=TensorType("i32", (N + 1,)))

    def run(self) -> Graph:
        inputs = tuple(self._input(i) for i in self.graph.inputs)
        for node in self.graph.nodes():
            if node not in self.done:
                self.done[node] = self._flat(node)
                self._keep_origin(node)
        outputs = tuple(self._output(o) for o in self.graph.outputs)
        return Graph(
            "step",
            (*inputs, self.query_start),
            outputs,
            self.graph.output_names,
            self.bounds,
            self.origins,
        )

    def _input(self, given: Node) -> Node:
        if given["name"] == POSITIONS:
            flat, axes = input_(name=POSITIONS, type=TensorType("i32", (T,))), ((S,),)
        elif given.shape == (B, S):
            flat, axes = input_(name="tokens", type=TensorType("i32", (T,))), ((B,), (S,))
        else:
            raise IRError(
                f"a causal language model takes ids [B, S], not {given['name']} : {given.type}"
            )
        node = tensor.cast(flat, dtype=given.dtype) if given.dtype != "i32" else flat
        self.done[given] = TokenValue(node, axes)
        return flat

    def _flat(self, node: Node) -> Operand:
        if self.kinds[node] == "constant":
            return node
        operands = [self.done[i] for i in node.inputs]
        try:
            if not any(isinstance(v, TokenValue) for v in operands):
                return self._lone_position(node)
            if node.op.name in _SEQUENCE_WISE:
                self._check_order(node)
                return _SEQUENCE_WISE[node.op.name](node, operands, self.query_start)
            return rule_for(node)(node, operands)
        except MixesTokensError as error:
            raise IRError(f"{error}\n{quote(self.graph, node)}\n{WHAT_TO_WRITE}") from None

    def _check_order(self, node: Node) -> None:
        if node.op is model.attention and not (node["causal"] or self.whole):
            raise MixesTokensError(
                "attention reads tokens that come later: not a causal language model"
            )

    def _lone_position(self, node: Node) -> TokenValue:
        """A value with batch or length in its shape that no input reaches: only a broadcast
        constant has a meaning here."""
        if node.op is not tensor.broadcast:
            raise MixesTokensError(f"{node.op.name} depends on the batch or the length itself")
        return broadcast(node, [as_token(node.inputs[0])])

    def _keep_origin(self, node: Node) -> None:
        """Give the node built for `node`, and those built on the way, its origin."""
        value = self.done[node]
        source = self.graph.origin(node)
        stack = [value.node if isinstance(value, TokenValue) else value] if source else []
        while stack:
            new = stack.pop()
            if new in self.origins or new.op.has("leaf"):
                continue
            self.origins[new] = source
            stack.extend(new.inputs)

    def _output(self, node: Node) -> Node:
        value = self.done[node]
        if not isinstance(value, TokenValue) or value.axes[:2] != ((B,), (S,)):
            raise IRError(
                f"the output {node.type} is no value of each token [B, S, ...]\n"
                f"{quote(self.graph, node)}"
            )
        return aligned(value, tuple(a or (1,) for a in value.axes))
