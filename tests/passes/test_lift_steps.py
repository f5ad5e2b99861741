"""What a loop computes of one token, computed for all of them before it."""

from __future__ import annotations

import numpy as np
import pytest
from check import check_values
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node, input_, parameter
from ferrule.ir.ops import tensor as t
from ferrule.ir.types import TensorType
from ferrule.passes.lift_steps import lift_steps

B, LENGTH = dim("B"), 5
X = input_(name="x", type=TensorType("f32", (B, LENGTH, 3)))
HEADS = input_(name="h", type=TensorType("f32", (2, B, 4, LENGTH)))
W = parameter(name="w", type=TensorType("f32", (3, 4)))


def at(x: Node, axis: int, place: int) -> Node:
    return t.slice_(x, axis=axis, start=place, stop=place + 1)


def loop(step: object, places: range = range(LENGTH)) -> Graph:
    """A running sum of what each step makes."""
    total = step(places[0])  # type: ignore[operator]
    for place in places[1:]:
        total = t.add(t.tanh(total), step(place))  # type: ignore[operator]
    return Graph("m", (X, HEADS), (total,), bounds={"B": (1, 3)})


def wide(graph: Graph, op: object) -> int:
    """How often an op is in a graph."""
    return sum(n.op is op for n in graph.nodes())


def decayed(place: int) -> Node:
    row = t.reshape(at(X, 1, place), shape=(B, 3))
    return t.exp(t.mul(t.matmul(row, W), t.scalar(0.3, "f32")))


def of_heads(place: int) -> Node:
    row = t.transpose(at(HEADS, 3, place), permutation=(1, 0, 2, 3))
    return t.sigmoid(t.reduce_sum(t.mul(row, row), axes=(2,), keepdims=True))


@pytest.mark.parametrize(("step", "op"), [(decayed, t.exp), (of_heads, t.sigmoid)])
def test_once_for_all_tokens(step: object, op: object):
    given = loop(step)
    lifted = lift_steps(given, LENGTH)
    assert wide(given, op) == LENGTH
    assert wide(lifted, op) == 1
    check_values(given, lifted, np.random.default_rng(), {})


def test_one_token_alone_and_products_of_two_values_stay():
    few = loop(decayed, range(2))
    assert lift_steps(few, LENGTH) == few

    def product(place: int) -> Node:
        row = t.reshape(at(HEADS, 3, place), shape=(2, B, 4))
        return t.mul(
            t.reshape(at(X, 1, place), shape=(1, B, 3, 1)),
            t.reshape(at(row, 0, 0), shape=(1, B, 1, 4)),
        )

    outer = loop(product)
    assert lift_steps(outer, LENGTH) == outer
