"""Masks that keep what an indexer picks become selections, and go where all keys are picked."""

from __future__ import annotations

import pytest
import sympy
from check import check_pass
from ferrule.ir.dims import dim
from ferrule.ir.errors import IRError
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node, input_, item
from ferrule.ir.ops import model
from ferrule.ir.ops import tensor as t
from ferrule.ir.types import TensorType
from ferrule.passes.raise_selections import RaiseSelections

B, S = dim("B"), dim("S")
COUNT, HEADS = 4, 3


def given(name: str, *shape) -> Node:
    return input_(name=name, type=TensorType("f32", shape))


Q, K, V = (given(n, B, 2, S, 5) for n in "qkv")
IQ, IK, W = given("iq", B, S, HEADS, 6), given("ik", B, S, 6), given("w", B, S, HEADS)


def causal() -> Node:
    """[B, 1, S, S]: whether a key is no later than a query."""
    places = t.iota(size=S, dtype="i64")
    rows, columns = (t.reshape(places, shape=s) for s in ((S, 1), (1, S)))
    seen = t.reshape(t.le(columns, rows), shape=(1, 1, S, S))
    return t.broadcast(seen, shape=(B, 1, S, S))


def scores(*, weighed: bool = True) -> Node:
    """sum_h w relu(0.5 q k^T), by a product or written out."""
    keys = t.reshape(t.transpose(IK, permutation=(0, 2, 1)), shape=(B, 1, 6, S))
    heads = t.relu(t.mul(t.matmul(IQ, keys), t.scalar(0.5, "f32")))
    if weighed:
        summed = t.matmul(t.reshape(W, shape=(B, S, 1, HEADS)), heads)
        return t.reshape(summed, shape=(B, S, S))
    return t.reduce_sum(t.mul(t.reshape(W, shape=(B, S, HEADS, 1)), heads), axes=(2,))


def picked(of: Node, mask: Node) -> Node:
    """[B, 1, S, S]: whether a key is among the best."""
    hidden = t.where(t.logical_not(mask), t.scalar(-float("inf"), "f32"), of)
    best = item(t.topk(hidden, k=sympy.Min(COUNT, S), axis=2), index=1)
    every = t.broadcast(t.scalar(True, "bool"), shape=(B, S, S))
    none = t.broadcast(t.scalar(False, "bool"), shape=best.shape)
    missed = t.scatter(every, t.cast(t.cast(best, dtype="i32"), dtype="i64"), none, axis=2)
    return t.logical_not(t.reshape(missed, shape=(B, 1, S, S)))


def attended(mask: Node) -> Graph:
    y = model.attention(Q, K, V, mask, scale=0.4, extras=("mask",))
    return Graph("m", (Q, K, V, IQ, IK, W), (y,), bounds={"B": (1, 3), "S": (1, 9)})


def flat(mask: Node) -> Node:
    return t.reshape(mask, shape=(B, S, S))


@pytest.mark.parametrize("weighed", [True, False])
def test_what_an_indexer_picks_is_selected(weighed: bool) -> None:
    seen = causal()
    graph = attended(t.logical_and(seen, picked(scores(weighed=weighed), flat(seen))))
    result = check_pass(RaiseSelections(max_context=9), graph)
    (chosen,) = (n for n in result.nodes() if n.op.name == "selected_keys")
    assert (chosen["count"], chosen["scale"], chosen["activation"]) == (COUNT, 0.5, "relu")
    assert chosen.inputs[:2] == (IQ, IK)
    (attention,) = (n for n in result.nodes() if n.op is model.attention)
    assert attention["extras"] == ("mask", "selected") and attention.inputs[3] is seen


def test_a_selection_of_all_keys_is_none() -> None:
    seen = causal()
    graph = attended(t.logical_and(seen, picked(scores(), flat(seen))))
    result = RaiseSelections(max_context=COUNT).run(graph)
    assert result.outputs[0] is attended(seen).outputs[0]


def test_an_indexer_that_sees_other_keys_is_refused() -> None:
    seen = causal()
    other = t.logical_and(seen, t.broadcast(t.scalar(True, "bool"), shape=(B, 1, S, S)))
    with pytest.raises(IRError, match="sees other keys"):
        RaiseSelections().run(attended(t.logical_and(seen, picked(scores(), flat(other)))))


def test_other_masks_stay() -> None:
    graph = attended(causal())
    assert RaiseSelections().run(graph).outputs == graph.outputs
