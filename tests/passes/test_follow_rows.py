"""Rows through ops: each claim is checked against values, by changing one row of an input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from check import random_values
from ferrule.compiler.reference import evaluate
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node, input_, item
from ferrule.ir.ops import model, tensor
from ferrule.ir.types import TensorType
from ferrule.passes.follow_rows import follow


def given(name: str, *shape: int, dtype: str = "f32") -> Node:
    return input_(name=name, type=TensorType(dtype, shape))


X, Y = given("x", 4, 5, 6), given("y", 5, 6)
I = given("i", 4, 3, dtype="i32")  # noqa: E741 - an index
CASES = [
    tensor.add(X, Y),
    tensor.mul(Y, X),
    tensor.reduce_sum(X, axes=(1,)),
    tensor.reduce_max(X, axes=(2,), keepdims=True),
    tensor.softmax(X, axis=1),
    tensor.cumsum(X, axis=2),
    tensor.cummax(X, axis=1),
    tensor.logcumsumexp(X, axis=2),
    item(tensor.topk(X, k=2, axis=1), index=0),
    tensor.argmax(X, axis=0),
    model.rms_norm(X, eps=1e-5),
    model.linear(X, given("w", 7, 6), given("b", 7)),
    tensor.reshape(X, shape=(4, 30)),
    tensor.reshape(X, shape=(20, 6)),
    tensor.reshape(X, shape=(4, 5, 2, 3)),
    tensor.transpose(X, permutation=(2, 0, 1)),
    tensor.broadcast(Y, shape=(3, 5, 6)),
    tensor.slice_(X, axis=1, start=1, stop=5, step=2),
    tensor.concat(X, X, axis=2),
    tensor.pad(X, before=(0, 1, 0), after=(0, 0, 2)),
    tensor.flip(X, axes=(0,)),
    tensor.take(X, given("j", 3, dtype="i32"), axis=1),
    tensor.take(Y, I, axis=0),
    tensor.take_along(given("z", 4, 5), I, axis=1),
    tensor.matmul(X, given("m", 6, 3)),
    tensor.matmul(given("l", 2, 4), given("n", 5, 4, 6)),
    model.expert_linear(given("q", 4, 3, 6), given("v", 5, 7, 6), I),
]


@pytest.mark.parametrize("node", CASES, ids=lambda n: n.op.name)
def test_a_row_of_the_result_needs_its_row_alone(node: Node):
    rng = np.random.default_rng()
    leaves = tuple(dict.fromkeys(n for n in Graph("g", (), (node,)).nodes() if not n.inputs))
    graph = Graph("g", leaves, (node,))
    values = random_values(graph, leaves, rng, {"i": (0, 5), "j": (0, 5)})
    before = evaluate(graph, values)[0]
    tops = list(node.inputs[0].inputs if node.op.name == "item" else node.inputs)
    for at, value in enumerate(tops):
        if value not in leaves or tops.count(value) > 1:
            continue
        for axis in range(len(value.shape)):
            checked = node.inputs[0] if node.op.name == "item" else node
            result = follow(checked, at, axis)
            if result is None:
                continue
            row = int(rng.integers(value.shape[axis]))
            changed = {**values, value["name"]: _with_row(values[value["name"]], axis, row)}
            after = evaluate(graph, changed)[0]
            kept = [r for r in range(after.shape[result]) if r != row]
            picked = torch.tensor(kept, dtype=torch.long)
            torch.testing.assert_close(
                after.index_select(result, picked), before.index_select(result, picked)
            )
            assert after.shape[result] == value.shape[axis], (at, axis)


def _with_row(value: torch.Tensor, axis: int, row: int) -> torch.Tensor:
    changed = value.clone()
    selected = changed.select(axis, row)
    if changed.is_floating_point():
        selected += 1.5
    else:
        selected.copy_((selected + 1) % 3)
    return changed


def test_what_mixes_rows_is_not_followed():
    assert follow(tensor.cumsum(X, axis=0), 0, 0) is None
    assert follow(tensor.reduce_sum(X, axes=(0, 1)), 0, 1) is None
    assert follow(tensor.matmul(X, given("m", 6, 3)), 1, 0) is None
    assert follow(tensor.take(X, I, axis=0), 0, 0) is None
    assert follow(tensor.take(X, I, axis=0), 1, 1) == 1
    assert follow(tensor.flip(X, axes=(1,)), 0, 1) is None
    assert follow(tensor.reshape(X, shape=(20, 6)), 0, 1) is None
