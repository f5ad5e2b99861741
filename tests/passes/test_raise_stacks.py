"""Products by stacks of weights: linears by an index that counts, with the same values."""

from __future__ import annotations

import pytest
from check import check_pass
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node, input_, parameter
from ferrule.ir.ops import tensor as t
from ferrule.ir.types import TensorType
from ferrule.passes.raise_stacks import RaiseStacks

T = dim("T")
X = input_(name="x", type=TensorType("f32", (T, 3, 5)))
W = parameter(name="w", type=TensorType("f32", (3, 5, 7)))
FRONT = t.transpose(X, permutation=(1, 0, 2))
BEFORE = """
graph m(%x: f32[T, 3, 5]) where T in [1, 9] {
  %0 = parameter {name = "w"} : f32[3, 5, 7]
  %1 = transpose %x {permutation = (1, 0, 2)} : f32[3, T, 5]
  %2 = matmul %1 %0 : f32[3, T, 7]
  %3 = transpose %2 {permutation = (1, 0, 2)} : f32[T, 3, 7]
  return %3 as y
}
"""
AFTER = """
graph m(%x: f32[T, 3, 5]) where T in [1, 9] {
  %0 = parameter {name = "w"} : f32[3, 5, 7]
  %1 = transpose %0 {permutation = (0, 2, 1)} : f32[3, 7, 5]
  %2 = iota {size = 3, dtype = "i32"} : i32[3]
  %3 = reshape %2 {shape = (1, 3)} : i32[1, 3]
  %4 = broadcast %3 {shape = (T, 3)} : i32[T, 3]
  %5 = expert_linear %x %1 %4 : f32[T, 3, 7]
  return %5 as y
}
"""


def graph(made: Node) -> Graph:
    inputs = tuple(n for n in Graph("m", (), (made,)).nodes() if n.op.name == "input")
    return Graph("m", inputs, (made,), ("y",), {"T": (1, 9)})


def names(made: Node) -> list[str]:
    return [n.op.name for n in check_pass(RaiseStacks(), graph(made)).nodes()]


def test_heads_by_weights_of_their_own():
    check_pass(RaiseStacks(), BEFORE, AFTER)


def test_rows_of_several_heads_by_one_matrix():
    rows = input_(name="x", type=TensorType("f32", (3, T * 2, 5)))
    assert "expert_linear" in names(t.matmul(rows, W))


def test_one_row_for_all_of_the_stack():
    rows = input_(name="x", type=TensorType("f32", (1, T, 5)))
    assert "expert_linear" in names(t.matmul(rows, W))


def test_weights_on_the_left():
    columns = t.transpose(X, permutation=(1, 2, 0))
    weights = parameter(name="w", type=TensorType("f32", (3, 7, 5)))
    assert "expert_linear" in names(t.matmul(weights, columns))


@pytest.mark.parametrize(
    "made",
    [
        t.matmul(FRONT, input_(name="w", type=W.type)),
        t.matmul(FRONT, t.transpose(FRONT, permutation=(0, 2, 1))),
        t.matmul(t.slice_(FRONT, axis=2, start=0, stop=1), t.slice_(W, axis=1, start=0, stop=1)),
        t.matmul(t.slice_(FRONT, axis=0, start=0, stop=1), t.slice_(W, axis=0, start=0, stop=1)),
    ],
)
def test_products_that_stay(made: Node):
    assert "matmul" in names(made)
