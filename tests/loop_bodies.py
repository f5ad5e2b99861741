"""Loops over tokens whose step is a graph, as kernel bodies: over batches, and over sequences that
go on from states.
"""

from __future__ import annotations

import torch
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.node import item
from ferrule.ir.ops import loops, model
from ferrule.ir.ops import tensor as t
from kernels import T, given, state

N, B, S = dim("N"), dim("B"), dim("S")
PLACES = (given("starts", "i32", N + 1), given("source", "i32", N), given("target", "i32", N))
BATCHES = (
    ((3, 1, 0, 7, 1), (-1, 2, 5, -1, 6), (4, 2, 0, 1, 7)),
    ((1, 1, 1), (3, -1, 0), (3, 1, 2)),
    ((40,), (-1,), (0,)),
)
STATES = 8


def elman(size: int, dtype: str = "f32") -> Graph:
    """h = tanh(x + u h + b), which is the result too."""
    x, h = given("x", dtype, 1, size), given("h", dtype, 1, size)
    u, b = given("u", dtype, size, size), given("b", dtype, size)
    new = t.tanh(t.add(x, model.linear(h, u, b)))
    return Graph("step", (x, h, u, b), (new, new))


def normalized(rows: int, width: int) -> Graph:
    """A memory of rows that are read by a softmax, an amount that is kept, a count in whole
    numbers; the result is what was read, and the count before.
    """
    x, m = given("x", "f32", 1, width), given("m", "f32", 1, rows, width)
    count, w = given("count", "i64", 1, 1), given("w", "f32", width)
    column = t.reshape(x, shape=(1, width, 1))
    weights = t.softmax(t.matmul(m, column), axis=1)
    read = t.reduce_sum(t.mul(m, weights), axes=(1,))
    kept = t.mul(m, t.sub(t.scalar(1.0, "f32"), t.mul(weights, t.scalar(0.5, "f32"))))
    row = t.reshape(model.rms_norm(x, w, eps=1e-5), shape=(1, 1, width))
    news = (t.add(kept, t.mul(weights, row)), t.add(count, t.scalar(1, "i64")))
    y = t.concat(read, t.cast(count, dtype="f32"), axis=1)
    return Graph("step", (x, m, count, w), (*news, y))


def delayed(width: int) -> Graph:
    """The value of the token before: the state is the token, the result is the state."""
    x, h = given("x", "bf16", 1, width), given("h", "bf16", 1, width)
    return Graph("step", (x, h), (x, h))


def going_on(body: Graph, held: tuple[int, ...], states: int) -> Graph:
    """A state_loop with a step, whose values of tokens are sums."""
    token, *rest = body.inputs
    shape = (T, *token.shape[1:])
    x, z = (given(n, token.dtype, *shape) for n in ("x", "z"))
    others = [given(i["name"], i.dtype, *i.shape) for i in rest]
    cache = state("state", "f32", *held)
    inputs = (t.add(x, z), cache, *PLACES, *others)
    made = loops.state_loop(*inputs, body=body, tokens=1, states=states)
    own = (x, z, cache, *PLACES, *others)
    return Graph("body", own, (item(made, index=0), item(made, index=1)))


def dense(body: Graph, states: int) -> Graph:
    token, *rest = body.inputs
    x = given("x", token.dtype, B, S, *token.shape[1:])
    others = [given(i["name"], i.dtype, *i.shape) for i in rest]
    return Graph(
        "body", (x, *others), (loops.token_loop(x, *others, body=body, tokens=1, states=states),)
    )


BODIES = {
    "elman": going_on(elman(19), (19,), 1),
    "elman bf16": going_on(elman(16, "bf16"), (16,), 1),
    "memory": going_on(normalized(5, 7), (36,), 2),
    "delay": going_on(delayed(6), (6,), 1),
    "dense elman": dense(elman(33), 1),
    "dense memory": dense(normalized(3, 4), 2),
}


def values_of(name: str, batch: tuple[tuple[int, ...], ...]) -> dict[str, object]:
    """What a body is given for sequences of so many tokens, the states that they go on from and
    leave; states that nobody reads are NaN.
    """
    counts, source, target = batch
    held = next(i.type for i in BODIES[name].inputs if i["name"] == "state")
    before = torch.randn(held.array(STATES), dtype=torch.float64)
    if name == "memory":
        before[:, -1] = torch.randint(0, 9, (STATES,))  # a count
    before[[n for n in range(STATES) if n not in source]] = float("nan")
    return {
        "starts": torch.tensor([0, *counts]).cumsum(0),
        "source": torch.tensor(source),
        "target": torch.tensor(target),
        "state": before.bfloat16().double(),
        "u": lambda shape: torch.randn(shape, dtype=torch.float64) / shape[-1] ** 0.5,
    }
