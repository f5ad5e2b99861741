"""Layers that compute all experts and keep a few become routed ones."""

from __future__ import annotations

import pytest
from check import check_pass
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node, input_, item, parameter
from ferrule.ir.ops import tensor as t
from ferrule.ir.types import TensorType
from ferrule.passes.raise_experts import RaiseExperts

N = dim("N")
E, H, F, K = 5, 6, 4, 2
X = input_(name="x", type=TensorType("f32", (N, H)))
LOGITS = input_(name="logits", type=TensorType("f32", (N, E)))
UP = parameter(name="up", type=TensorType("f32", (E, H, 2 * F)))
DOWN = parameter(name="down", type=TensorType("f32", (E, F, H)))


def shares(base: float, *, activated: bool) -> Node:
    """[E, N]: what each row gives each expert."""
    best = t.topk(LOGITS, k=K, axis=1)
    every = t.broadcast(t.scalar(base, "f32"), shape=(N, E))
    p = t.scatter(every, item(best, index=1), item(best, index=0), axis=1)
    return t.transpose(t.sigmoid(p) if activated else p, permutation=(1, 0))


def experts(x: Node) -> Node:
    """A gated layer of each expert over x[E, N, H]."""
    both = t.matmul(x, UP)
    gate, up = (t.slice_(both, axis=2, start=a, stop=a + F) for a in (0, F))
    return t.matmul(t.mul(up, t.silu(gate)), DOWN)


def repeated() -> Node:
    wide = t.broadcast(t.reshape(X, shape=(1, N, 1, H)), shape=(E, N, 1, H))
    return t.reshape(wide, shape=(E * N, H))


def scaled(base: float) -> Node:
    p = t.reshape(shares(base, activated=True), shape=(E * N, 1))
    x = t.reshape(t.mul(repeated(), p), shape=(E, N, H))
    return t.reduce_sum(experts(x), axes=(0,))


def weighed(base: float) -> Node:
    p = t.reshape(shares(base, activated=False), shape=(E, N, 1))
    return t.reduce_sum(t.mul(experts(t.reshape(X, shape=(1, N, H))), p), axes=(0,))


def graph(y: Node) -> Graph:
    return Graph("m", (X, LOGITS), (y,), bounds={"N": (1, 9)})


@pytest.mark.parametrize("y", [scaled(-float("inf")), weighed(0.0)])
def test_only_chosen_experts_are_computed(y: Node) -> None:
    result = check_pass(RaiseExperts(), graph(y))
    names = [n.op.name for n in result.nodes()]
    assert names.count("expert_linear") == 2 and "matmul" not in names


@pytest.mark.parametrize("y", [scaled(0.0), weighed(0.5)])
def test_experts_that_all_count_are_left(y: Node) -> None:
    assert RaiseExperts().run(graph(y)).outputs == (y,)
