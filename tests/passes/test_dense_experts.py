"""Layers that compute all experts and keep a few become routed ones."""

from __future__ import annotations

import pytest
from check import check_pass
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node, input_, item, parameter
from ferrule.ir.ops import model
from ferrule.ir.ops import tensor as t
from ferrule.ir.rewrite import rewrite
from ferrule.ir.types import TensorType
from ferrule.passes.raise_experts import RaiseExperts
from ferrule.passes.rules.dense_experts import DENSE_EXPERTS

N = dim("N")
E, H, F, K = 5, 6, 4, 2
X = input_(name="x", type=TensorType("f32", (N, H)))
LOGITS = input_(name="logits", type=TensorType("f32", (N, E)))
UP = parameter(name="up", type=TensorType("f32", (E, H, 2 * F)))
DOWN = parameter(name="down", type=TensorType("f32", (E, F, H)))


def shares(base: float, *, activated: bool, logits: Node = LOGITS) -> Node:
    """[E, N]: what each row gives each expert."""
    best = t.topk(logits, k=K, axis=1)
    every = t.broadcast(t.scalar(base, "f32"), shape=(N, E))
    p = t.scatter(every, item(best, index=1), item(best, index=0), axis=1)
    return t.transpose(t.sigmoid(p) if activated else p, permutation=(1, 0))


def experts(x: Node) -> Node:
    """A gated layer of each expert over x[E, N, H]."""
    both = t.matmul(x, UP)
    gate, up = (t.slice_(both, axis=2, start=a, stop=a + F) for a in (0, F))
    return t.matmul(t.mul(up, t.silu(gate)), DOWN)


def repeated(x: Node) -> Node:
    wide = t.broadcast(t.reshape(x, shape=(1, N, 1, H)), shape=(E, N, 1, H))
    return t.reshape(wide, shape=(E * N, H))


def scaled(base: float, x: Node = X, logits: Node = LOGITS) -> Node:
    p = t.reshape(shares(base, activated=True, logits=logits), shape=(E * N, 1))
    x = t.reshape(t.mul(repeated(x), p), shape=(E, N, H))
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


def test_layers_of_any_depth_are_raised_at_once() -> None:
    """Each layer's choices are its own: none waits for the one before it."""
    y = X
    for _ in range(6):
        logits = t.slice_(y, axis=1, start=0, stop=E)
        y = t.add(y, scaled(-float("inf"), y, logits))
    fired: dict[str, int] = {}
    rewrite(graph(y), DENSE_EXPERTS, fired, most_sweeps=1)
    assert fired == {"chosen_of_all_experts": 6}


# -- one expert after another

W1 = [parameter(name=f"a{e}", type=TensorType("f32", (F, H))) for e in range(E)]
B1 = [parameter(name=f"b{e}", type=TensorType("f32", (F,))) for e in range(E)]
W2 = [parameter(name=f"c{e}", type=TensorType("f32", (H, F))) for e in range(E)]
B, S = dim("B"), dim("S")
X3 = input_(name="x3", type=TensorType("f32", (B, S, H)))
LOGITS3 = input_(name="logits3", type=TensorType("f32", (B, S, E)))


def one(e: int) -> Node:
    return model.linear(t.gelu(model.linear(X3, W1[e], B1[e])), W2[e])


def summed(shares: list[Node]) -> Node:
    """x plus every expert's share of its result, one after another."""
    total = X3
    for e, share in enumerate(shares):
        total = t.add(total, t.mul(one(e), share))
    return total


def best() -> tuple[Node, Node]:
    both = t.topk(LOGITS3, k=K, axis=2)
    return item(both, index=0), item(both, index=1)


def sliced() -> list[Node]:
    """Of a softmax over what a topk leaves."""
    values, index = best()
    every = t.broadcast(t.scalar(-float("inf"), "f32"), shape=(B, S, E))
    p = t.softmax(t.scatter(every, index, values, axis=2), axis=2)
    return [t.slice_(p, axis=2, start=e, stop=e + 1) for e in range(E)]


def compared() -> list[Node]:
    """Of a softmax over the chosen, where they are this expert's."""
    values, index = best()
    weights = t.softmax(values, axis=2)
    named = [t.cast(t.eq(index, t.scalar(e, "i64")), dtype="f32") for e in range(E)]
    sums = [t.reduce_sum(t.mul(weights, n), axes=(2,)) for n in named]
    return [t.reshape(s, shape=(B, S, 1)) for s in sums]


def graph3(y: Node) -> Graph:
    return Graph("m", (X3, LOGITS3), (y,), bounds={"B": (1, 3), "S": (1, 5)})


@pytest.mark.parametrize("shares", [sliced(), compared()])
def test_experts_one_after_another_are_stacked(shares: list[Node]) -> None:
    result = check_pass(RaiseExperts(), graph3(summed(shares)))
    names = [n.op.name for n in result.nodes()]
    assert names.count("expert_linear") == 2 and "linear" not in names


def test_a_sum_that_lacks_an_expert_is_left() -> None:
    result = RaiseExperts().run(graph3(summed(compared()[:-1])))
    assert "expert_linear" not in [n.op.name for n in result.nodes()]
