"""Linears of few columns, as models have them that mix a handful of streams, for rows to make.

A kernel of its own is worth it where threads share the weights out. A few columns are gathered
sooner than other threads are called, by the kernel that makes their operand or reads their result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..ir.graph import Graph
from ..ir.node import Node
from ..ir.ops import tensor as t

MOST_WEIGHTS = 1 << 14
MOST_ROWS = 64
"""Columns of a result where each is a sum of few."""


@dataclass(frozen=True)
class FewColumns:
    """Linears of at most `few` columns, or of so few numbers a column, become products and sums;
    0 leaves all as they are.
    """

    name: ClassVar[str] = "few-columns"
    few: int = 0

    def run(self, graph: Graph) -> Graph:
        """The graph without linears that small."""
        found = [n for n in graph.nodes() if n.op.name == "linear" and self._is_small(n)]
        return graph.replace({n: _summed(n) for n in found}) if found else graph

    def _is_small(self, node: Node) -> bool:
        n, k = node.inputs[1].shape
        if not isinstance(n, int) or not isinstance(k, int) or n * k > MOST_WEIGHTS:
            return False
        return n <= self.few or (k <= self.few and n <= MOST_ROWS)


def _summed(node: Node) -> Node:
    """sum_k x[.., 1, k] w[n, k] + b[n], in float32 or wider, rounded once as a linear is."""
    x, w, *bias = (_wide(i) for i in node.inputs)
    apart = t.reshape(x, shape=(*x.shape[:-1], 1, x.shape[-1]))
    made = t.reduce_sum(t.mul(apart, w), axes=(len(x.shape),))
    for b in bias:
        made = t.add(made, b)
    return made if made.dtype == node.dtype else t.cast(made, dtype=node.dtype)


def _wide(x: Node) -> Node:
    return x if x.dtype in ("f32", "f64") else t.cast(x, dtype="f32")
