"""Counts of padding over whole sequences are the length, where no token is padding."""

from __future__ import annotations

import numpy as np
import pytest
from ferrule.compiler.reference import evaluate
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node, input_
from ferrule.ir.ops import tensor as t
from ferrule.ir.types import TensorType
from ferrule.passes.count_padding import count_padding

B, S = dim("B"), dim("S")
IDS = input_(name="ids", type=TensorType("i64", (B, S)))
PADDING = 2


def counted(compared: Node, axis: int = 1) -> Node:
    return t.reduce_sum(t.cast(compared, dtype="i64"), axes=(axis,))


def graph(node: Node) -> Graph:
    return Graph("m", (IDS,), (node,), ("y",), {"B": (1, 3), "S": (1, 9)})


def value(found: Graph, ids: np.ndarray) -> np.ndarray:
    import torch

    (y,) = evaluate(found, [torch.from_numpy(ids)], {})
    return y.numpy()


@pytest.mark.parametrize("op", [t.ne, t.eq])
@pytest.mark.parametrize("turned", [False, True])
def test_what_is_counted_without_padding_is_the_length(op, turned: bool):
    two = (t.scalar(PADDING, "i64"), IDS) if turned else (IDS, t.scalar(PADDING, "i64"))
    before = graph(counted(op(*two)))
    found = count_padding(before, {PADDING})
    assert found.token == PADDING and found.place == "the model"
    assert not any(n.op in (t.ne, t.eq) for n in found.graph.nodes())
    ids = np.random.default_rng(0).integers(3, 99, (2, 7))
    assert (value(found.graph, ids) == value(before, ids)).all()


@pytest.mark.parametrize(
    "kept",
    [
        counted(t.ne(IDS, t.scalar(1, "i64"))),  # no padding
        counted(t.lt(IDS, t.scalar(PADDING, "i64"))),
        counted(t.ne(IDS, t.scalar(PADDING, "i64")), axis=0),  # over the batch
        t.cumsum(t.cast(t.ne(IDS, t.scalar(PADDING, "i64")), dtype="i64"), axis=1),
        t.ne(IDS, t.scalar(PADDING, "i64")),
    ],
)
def test_other_values_stay(kept: Node):
    before = graph(kept)
    found = count_padding(before, {PADDING})
    assert found.token is None and found.graph is before
