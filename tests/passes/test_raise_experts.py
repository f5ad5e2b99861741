"""Expert layers by gathered weights, in each orientation."""

from __future__ import annotations

import pytest
from check import check_pass
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node, input_, parameter
from ferrule.ir.ops import model
from ferrule.ir.ops import tensor as t
from ferrule.ir.types import TensorType
from ferrule.passes.raise_experts import RaiseExperts

T = dim("T")
BEFORE = """
graph m(%x: f32[T, 6], %e: i64[T]) where T in [1, 64] {
  %0 = parameter {name = "w", type = f32[5, 3, 6]} : f32[5, 3, 6]
  %1 = take %0 %e {axis = 0} : f32[T, 3, 6]
  %2 = reshape %x {shape = (T, 6, 1)} : f32[T, 6, 1]
  %3 = matmul %1 %2 : f32[T, 3, 1]
  %4 = reshape %3 {shape = (T, 3)} : f32[T, 3]
  %5 = parameter {name = "b", type = f32[5, 3]} : f32[5, 3]
  %6 = take %5 %e {axis = 0} : f32[T, 3]
  %7 = add %4 %6 : f32[T, 3]
  return %7 as y
}
"""
AFTER = """
graph m(%x: f32[T, 6], %e: i64[T]) where T in [1, 64] {
  %0 = parameter {name = "w", type = f32[5, 3, 6]} : f32[5, 3, 6]
  %1 = parameter {name = "b", type = f32[5, 3]} : f32[5, 3]
  %2 = expert_linear %x %0 %e %1 : f32[T, 3]
  return %2 as y
}
"""


def test_columns_and_bias():
    check_pass(RaiseExperts(), BEFORE, AFTER)


X = input_(name="x", type=TensorType("f32", (T, 6)))
X3 = input_(name="x3", type=TensorType("f32", (T, 2, 6)))
E = input_(name="e", type=TensorType("i64", (T,)))
E2 = input_(name="e2", type=TensorType("i64", (T, 2)))
W = parameter(name="w", type=TensorType("f32", (5, 3, 6)))
WT = parameter(name="wt", type=TensorType("f32", (5, 6, 3)))
BIAS = parameter(name="b", type=TensorType("f32", (5, 3)))


def turned(x: Node) -> Node:
    rank = len(x.shape)
    return t.transpose(x, permutation=(*range(rank - 2), rank - 1, rank - 2))


def row(x: Node = X) -> Node:
    return t.reshape(x, shape=(T, 1, 6))


def taken(w: Node, index: Node = E) -> Node:
    return t.take(w, index, axis=0)


def flat(y: Node) -> Node:
    return t.reshape(y, shape=(T, 3))


def biased() -> Node:
    bias = t.reshape(taken(BIAS), shape=(T, 1, 3))
    return flat(t.add(bias, t.matmul(row(), taken(WT))))


def choices() -> tuple[Node, Node]:
    """One row for each of two experts: the row is repeated, the weights are not."""
    before = t.matmul(t.reshape(X, shape=(T, 1, 1, 6)), taken(WT, E2))
    rows = t.broadcast(t.reshape(X, shape=(T, 1, 6)), shape=(T, 2, 6))
    return before, t.reshape(model.expert_linear(rows, turned(WT), E2), shape=(T, 2, 1, 3))


def several_rows() -> tuple[Node, Node]:
    each = t.broadcast(t.reshape(E, shape=(T, 1)), shape=(T, 2))
    return t.matmul(X3, taken(WT)), model.expert_linear(X3, turned(WT), each)


SPELLINGS: dict[str, tuple[Node, Node]] = {
    "rows": (flat(t.matmul(row(), taken(WT))), model.expert_linear(X, turned(WT), E)),
    "rows, weights turned": (
        flat(t.matmul(row(), turned(taken(W)))),
        model.expert_linear(X, W, E),
    ),
    "columns, weights turned": (
        flat(t.matmul(turned(taken(WT)), t.reshape(X, shape=(T, 6, 1)))),
        model.expert_linear(X, turned(WT), E),
    ),
    "bias beside a row": (biased(), model.expert_linear(X, turned(WT), E, BIAS)),
    "two choices": choices(),
    "several rows": several_rows(),
}


def graph(*outputs: Node) -> Graph:
    return Graph("m", (X, X3, E, E2), outputs, bounds={"T": (1, 64)})


@pytest.mark.parametrize("name", SPELLINGS)
def test_spelling(name: str):
    before, after = SPELLINGS[name]
    check_pass(RaiseExperts(), graph(before), graph(after))


def test_a_bias_by_another_index_stays():
    other = t.slice_(E2, axis=1, start=0, stop=1)
    bias = taken(BIAS, t.reshape(other, shape=(T,)))
    result = check_pass(RaiseExperts(), graph(t.add(flat(t.matmul(row(), taken(WT))), bias)))
    assert result.outputs[0].op is t.add


def test_all_experts_at_once_stay():
    every = graph(t.matmul(t.reshape(X, shape=(1, T, 6)), WT))
    check_pass(RaiseExperts(), every, every)
