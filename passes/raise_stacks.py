"""Raise stacks: products of every token by a stack of weights, one for each head or block, become
linears by experts whose index counts the stack through.

Such a product stands in absorbed attention (a map of each head's latent) and in block-diagonal
gates. As a linear it has a kernel that reads weights packed, once for all rows of a head, and it
is quantized as the recipe says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..ir.dims import Dim, names_in
from ..ir.graph import Graph
from ..ir.node import Node, walk
from ..ir.ops import model
from ..ir.ops import tensor as t
from ..ir.rewrite import Rules, hole, rewrite
from .rules.movement import MOVEMENT
from .rules.values import reshaped, spread, transposed

STACKS = Rules("stacks")
FLOATS = frozenset({"f32", "f16", "bf16", "f64"})
x, y = hole("x"), hole("y")


@STACKS.on(t.matmul(x, y))
def rows_by_stack(root: Node, x: Node, y: Node) -> Node | None:
    """x[G, T, K] @ W[G, K, N] = expert_linear(x^T, W^T, 0 .. G - 1)^T, where ^T puts rows first."""
    return _by_index(x, transposed(y)) if _is_stack(y, root) and _has_tokens(x) else None


@STACKS.on(t.matmul(x, y))
def stack_by_columns(root: Node, x: Node, y: Node) -> Node | None:
    """W[G, N, K] @ x[G, K, T] = expert_linear(x^T, W, 0 .. G - 1)^T."""
    if not _is_stack(x, root) or not _has_tokens(transposed(y)):
        return None
    return transposed(_by_index(transposed(y), x))


def _is_stack(weights: Node, product: Node) -> bool:
    """Whether the weights are those of a model alone, several matrices, and spread over nothing."""
    if len(weights.shape) != 3 or weights.dtype not in FLOATS or weights.shape[0] == 1:
        return False
    if len(product.shape) != 3 or not all(isinstance(d, int) for d in weights.shape):
        return False
    return all(n.op.name not in ("input", "dim_value") for n in walk((weights,)))


def _has_tokens(rows: Node) -> bool:
    """Whether x[G, T, K] has a row for each token, and more than one column."""
    if len(rows.shape) != 3 or rows.shape[2] == 1:
        return False
    return bool(names_in(rows.shape[1])) and isinstance(rows.shape[0], int)


def _by_index(rows: Node, weights: Node) -> Node:
    """[G, T, N] of rows[G, T, K] and weights[G, N, K]."""
    groups, tokens = int(weights.shape[0]), rows.shape[1]
    wide: tuple[Dim, ...] = (groups, *rows.shape[1:])
    index = reshaped(t.iota(size=groups, dtype="i32"), (1, groups))
    front = t.transpose(spread(rows, wide), permutation=(1, 0, 2))
    made = model.expert_linear(front, weights, spread(index, (tokens, groups)))
    return t.transpose(made, permutation=(1, 0, 2))


@dataclass(frozen=True)
class RaiseStacks:
    """Products of tokens by stacks of weights become expert_linear."""

    name: ClassVar[str] = "raise-stacks"

    def run(self, graph: Graph) -> Graph:
        """The graph with a linear for each such product."""
        return rewrite(graph, STACKS + MOVEMENT)
