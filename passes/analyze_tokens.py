"""Token analysis: what each value of a captured graph depends on.

A value is *token* where it depends on the token ids, *position* where it does not but its shape or
content depends on the batch or the length (so it can depend on positions alone), and *constant*
otherwise. The frontier is the set of position values that token values or outputs read: what the
later passes turn into tables over positions, or into masks described by attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..ir.dims import names_in
from ..ir.errors import IRError
from ..ir.graph import Graph
from ..ir.node import Node
from ..ir.types import TensorType, TupleType, Type

if TYPE_CHECKING:
    import numpy as np

BATCH, LENGTH = "B", "S"
Kind = Literal["constant", "position", "token"]
# (nodes, value of each dim) -> the nodes' values; needs the model's parameters, so the compiler
# provides it.
Evaluate = Callable[[tuple[Node, ...], Mapping[str, int]], "list[np.ndarray[Any, Any]]"]


@dataclass(frozen=True)
class TokenAnalysis:
    """The kind of every node of a graph."""

    graph: Graph
    kinds: Mapping[Node, Kind]

    def frontier(self) -> tuple[Node, ...]:
        """The position values that a token value or an output reads, in order, each once."""
        read = [i for n in self.graph.nodes() if self.kinds[n] == "token" for i in n.inputs]
        found = [n for n in (*read, *self.graph.outputs) if self.kinds[n] == "position"]
        return tuple(dict.fromkeys(found))


def analyze(graph: Graph) -> TokenAnalysis:
    """The analysis of a graph whose inputs are token ids [B, S]."""
    kinds: dict[Node, Kind] = {}
    for node in (*graph.inputs, *graph.nodes()):
        kinds[node] = _kind(node, kinds)
    return TokenAnalysis(graph, kinds)


def _kind(node: Node, kinds: Mapping[Node, Kind]) -> Kind:
    below = {kinds[i] for i in node.inputs}
    if node.op.name == "input" or "token" in below:
        return "token"
    return "position" if "position" in below or _mentions_batch(node) else "constant"


def _mentions_batch(node: Node) -> bool:
    """Whether the node's type or an attribute depends on the batch or the length."""
    if _type_names(node.type) & {BATCH, LENGTH}:
        return True
    return node.op.name == "dim_value" and bool(names_in(node["dim"]) & {BATCH, LENGTH})


def _type_names(t: Type) -> frozenset[str]:
    if isinstance(t, TupleType):
        return frozenset[str]().union(*(_type_names(i) for i in t.items))
    if isinstance(t, TensorType):
        return frozenset[str]().union(*(names_in(d) for d in t.shape))
    return frozenset()


def need_evaluate(evaluate: Evaluate | None, name: str) -> Evaluate:
    """The evaluator, or an error where a pass was given none."""
    if evaluate is None:
        raise IRError(
            f"pass {name!r} evaluates parts of the graph and was given no parameters to do it with"
        )
    return evaluate
