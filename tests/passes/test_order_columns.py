"""Columns in the order of the parts that they are read in: text, values, and what is left alone."""

from __future__ import annotations

import pytest
from check import check_pass
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node, input_, parameter
from ferrule.ir.ops import model
from ferrule.ir.ops import tensor as t
from ferrule.ir.types import TensorType
from ferrule.passes.order_columns import OrderColumns

B, S = dim("B"), dim("S")
X = input_(name="x", type=TensorType("f32", (B, S, 5)))
W = parameter(name="w", type=TensorType("f32", (12, 5)))
BIAS = parameter(name="b", type=TensorType("f32", (12,)))
BEFORE = """
graph m(%x: f32[B, S, 5]) where B in [1, 3], S in [1, 9] {
  %0 = parameter {name = "w"} : f32[12, 5]
  %1 = linear %x %0 : f32[B, S, 12]
  %2 = reshape %1 {shape = (B, S, 3, 4)} : f32[B, S, 3, 4]
  %3 = slice %2 {axis = 3, start = 0, stop = 1} : f32[B, S, 3, 1]
  %4 = reshape %3 {shape = (B, S, 3)} : f32[B, S, 3]
  %5 = slice %2 {axis = 3, start = 1, stop = 4} : f32[B, S, 3, 3]
  %6 = reshape %5 {shape = (B, S, 9)} : f32[B, S, 9]
  %7 = concat %4 %6 {axis = 2} : f32[B, S, 12]
  return %7 as y
}
"""
AFTER = """
graph m(%x: f32[B, S, 5]) where B in [1, 3], S in [1, 9] {
  %0 = parameter {name = "w"} : f32[12, 5]
  %1 = reshape %0 {shape = (3, 4, 5)} : f32[3, 4, 5]
  %2 = slice %1 {axis = 1, start = 0, stop = 1} : f32[3, 1, 5]
  %3 = reshape %2 {shape = (3, 5)} : f32[3, 5]
  %4 = slice %1 {axis = 1, start = 1, stop = 4} : f32[3, 3, 5]
  %5 = reshape %4 {shape = (9, 5)} : f32[9, 5]
  %6 = concat %3 %5 {axis = 0} : f32[12, 5]
  %7 = linear %x %6 : f32[B, S, 12]
  return %7 as y
}
"""


def test_parts_of_every_group():
    check_pass(OrderColumns(), BEFORE, AFTER)


def parts(*spans: tuple[int, int], flat: bool = True, bias: bool = False) -> list[Node]:
    """Slices of the columns of each group."""
    made = model.linear(X, W, *((BIAS,) if bias else ()))
    apart = t.reshape(made, shape=(B, S, 3, 4))
    found = [t.slice_(apart, axis=3, start=a, stop=b) for a, b in spans]
    return [t.reshape(p, shape=(B, S, 3 * int(p.shape[3]))) for p in found] if flat else found


def changed(*outputs: Node) -> Graph | None:
    names = tuple(f"y{i}" for i in range(len(outputs)))
    before = Graph("m", (X,), outputs, names, {"B": (1, 3), "S": (1, 9)})
    after = check_pass(OrderColumns(), before)
    return None if after is before else after


def test_a_bias_and_columns_that_nothing_reads():
    after = changed(*parts((0, 1), (2, 4), bias=True))
    assert after is not None
    linear = next(n for n in after.nodes() if n.op is model.linear)
    assert [i.shape for i in linear.inputs[1:]] == [(9, 5), (9,)]


def every(n: int, made: Node) -> list[Node]:
    """Every n-th column, from each beginning."""
    axis = len(made.shape) - 1
    spans = ((i, int(made.shape[-1]), n) for i in range(n))
    return [t.slice_(made, axis=axis, start=a, stop=b, step=c) for a, b, c in spans]


@pytest.mark.parametrize("n", [2, 3])
def test_interleaved_columns(n: int):
    first, *others = every(n, model.linear(X, W, BIAS))
    after = changed(t.silu(first), *others)
    assert after is not None
    linear = next(m for m in after.nodes() if m.op is model.linear)
    assert all(u["step"] == 1 for u in after.users(linear))


def test_interleaved_columns_of_experts():
    index = input_(name="index", type=TensorType("i64", (B, S)))
    weight = parameter(name="w", type=TensorType("f32", (3, 8, 5)))
    bias = parameter(name="b", type=TensorType("f32", (3, 8)))
    gate, up = every(2, model.expert_linear(X, weight, index, bias))
    before = Graph("m", (X, index), (t.mul(gate, up),), ("y",), {"B": (1, 3), "S": (1, 9)})
    after = check_pass(OrderColumns(), before, ranges={"index": (0, 3)})
    linear = next(m for m in after.nodes() if m.op is model.expert_linear)
    assert {(u["start"], u["stop"], u["step"]) for u in after.users(linear)} == {
        (0, 4, 1),
        (4, 8, 1),
    }


@pytest.mark.parametrize(
    "outputs",
    [
        every(2, model.linear(X, W))[:1],
        [*every(2, model.linear(X, W)), t.neg(model.linear(X, W))],
        every(5, model.linear(X, W)),
        parts((0, 4)),
        parts((0, 2), (1, 4)),
        parts((0, 2), (2, 4), flat=False),
        [*parts((0, 2), (2, 4)), model.linear(X, W)],
        [*parts((0, 2), (2, 4)), t.neg(model.linear(X, W))],
    ],
)
def test_what_stays(outputs: list[Node]):
    assert changed(*outputs) is None
