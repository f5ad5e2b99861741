"""Reference values of loops over tokens in their three forms, and the types that they refuse."""

from __future__ import annotations

import pytest
import torch
from ferrule.compiler.reference import evaluate
from ferrule.ir.errors import IRError
from ferrule.ir.graph import Graph
from ferrule.ir.node import input_, item
from ferrule.ir.ops import loops
from ferrule.ir.ops import tensor as t
from ferrule.ir.text import parse_graph, print_graph
from ferrule.ir.types import CacheType, TensorType


def given(name, dtype, *shape):
    return input_(name=name, type=TensorType(dtype, shape))


def step():
    """h = tanh(x + c h), n = n + 1; y = h n."""
    x, h, n, c = (given(s, "f64", 1, 3) for s in "xhnc")
    new, more = t.tanh(t.add(x, t.mul(c, h))), t.add(n, t.scalar(1.0, "f64"))
    return Graph("step", (x, h, n, c), (new, more, t.mul(new, more)))


def by_hand(x, h, n, c):
    rows = []
    for row in x:
        h, n = torch.tanh(row[None] + c * h), n + 1
        rows.append((h * n)[0])
    return torch.stack(rows), (h, n)


REST = [torch.randn(1, 3).double() for _ in range(3)]


def test_a_batch():
    x = torch.randn(2, 5, 3).double()
    inputs = (given("x", "f64", 2, 5, 3), *(given(s, "f64", 1, 3) for s in "hnc"))
    made = loops.token_loop(*inputs, body=step(), tokens=1, states=2)
    graph = Graph("g", inputs, (made,))
    assert parse_graph(print_graph(graph)) == graph
    (value,) = evaluate(graph, [x, *REST])
    torch.testing.assert_close(value, torch.stack([by_hand(row, *REST)[0] for row in x]))


def test_ragged_sequences_that_go_on():
    x, kind = torch.randn(7, 3).double(), CacheType("f64", 0, (6,))
    starts = torch.tensor([0, 4, 4, 7], dtype=torch.int32)
    inputs = [given("x", "f64", 7, 3), input_(name="state", type=kind)]
    inputs += [given("starts", "i32", 4), given("source", "i32", 3), given("target", "i32", 3)]
    inputs += [given(s, "f64", 1, 3) for s in "hnc"]
    made = loops.state_loop(*inputs, body=step(), tokens=1, states=2)
    held = torch.randn(5, 6).double()
    places = [torch.tensor(p, dtype=torch.int32) for p in ([-1, 0, 3], [1, 4, 3])]
    graph = Graph("g", tuple(inputs), (item(made, index=0), item(made, index=1)))
    y, after = evaluate(graph, [x, held, starts, *places, *REST])
    first, (h, n) = by_hand(x[:4], *REST)
    torch.testing.assert_close(y[:4], first)
    torch.testing.assert_close(after[1], torch.cat([h, n], 1)[0])
    last, (h, n) = by_hand(x[4:], held[3:4, :3], held[3:4, 3:], REST[2])
    torch.testing.assert_close(y[4:], last)
    torch.testing.assert_close(after[3], torch.cat([h, n], 1)[0])
    torch.testing.assert_close(after[4], held[0])  # no tokens: the state is moved
    ragged = loops.ragged_loop(inputs[0], inputs[2], *inputs[5:], body=step(), tokens=1, states=2)
    names = (inputs[0], inputs[2], *inputs[5:])
    (value,) = evaluate(Graph("g", names, (ragged,)), [x, starts, *REST])
    torch.testing.assert_close(
        value, torch.cat([by_hand(x[:4], *REST)[0], by_hand(x[4:], *REST)[0]])
    )


@pytest.mark.parametrize(
    ("shapes", "states", "said"),
    [
        (((2, 5, 3), (1, 3), (1, 3)), 2, "the body takes"),
        (((5,), (1, 3), (1, 3), (1, 3)), 2, r"x\[B, S, ...\]"),
        (((2, 5, 3), (1, 3), (1, 3), (1, 3)), 1, "gives the states"),
        (((2, 5, 3),), 2, "2 states were wanted"),
    ],
)
def test_what_does_not_fit_is_refused(shapes, states, said):
    inputs = [given(f"i{n}", "f64", *s) for n, s in enumerate(shapes)]
    with pytest.raises(IRError, match=said):
        loops.token_loop(*inputs, body=step(), tokens=1, states=states)
