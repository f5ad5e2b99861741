"""Convolutions and scans: over batches, and over ragged sequences that go on from states; odd
sizes, states in place and moved, states that nobody reads are NaN.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ferrule.compiler.reference.context import DTYPES
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node, item
from ferrule.ir.ops import recurrent as r
from ferrule.ir.ops import tensor as t
from ferrule.ir.target import Target
from kernels import Kernels, T, given, state

N, B, S = dim("N"), dim("B"), dim("S")
PLACES = (given("starts", "i32", N + 1), given("source", "i32", N), given("target", "i32", N))
MANY = ((3, 1, 0, 7, 1), (-1, 2, 5, -1, 6), (4, 2, 0, 1, 7))
ONES = ((1, 1, 1), (3, -1, 0), (3, 1, 2))
STATES = 8


def in_place(made: Node) -> Graph:
    """A body that gives a recurrent op's rows and its states."""
    inputs = tuple(i for i in _leaves(made) if i.op.name == "input")
    return Graph("body", inputs, (item(made, index=0), item(made, index=1)))


def _leaves(node: Node) -> list[Node]:
    found: dict[Node, None] = {}
    for i in node.inputs:
        found.update(dict.fromkeys(_leaves(i) if i.inputs else [i]))
    return list(found)


def conv(dtype: str, channels: int, taps: int) -> Graph:
    x, g = given("x", dtype, T, channels), given("g", dtype, T, channels)
    held = state("state", dtype, taps - 1, channels)
    w = given("w", dtype, taps, channels)
    return in_place(r.state_conv(t.mul(x, g), w, held, *PLACES))


def conv_and_more(dtype: str, channels: int, taps: int, *, rows: bool = False) -> Graph:
    """A convolution with several results behind its rows; or with some that need whole rows."""
    body = conv(dtype, channels, taps)
    y, held = body.outputs
    p, m = given("p", dtype, T, channels), given("m", dtype, channels)
    mixed = t.add(t.mul(y, m), p)
    last = t.softmax(mixed, axis=1) if rows else t.reshape(mixed, shape=(T, channels, 1))
    return Graph("body", (*body.inputs, p, m), (t.silu(y), last, held))


def scan(
    dtype: str, heads: int, groups: int, k: int, v: int, decays: int, *, delta: bool = False
) -> Graph:
    q, key = (given(n, dtype, T, groups, k) for n in "qk")
    value, decay = given("v", dtype, T, heads, v), given("g", "f32", T, heads, decays)
    beta = (given("b", dtype, T, heads),) if delta else ()
    held = state("state", "f32", heads, k, v)
    return in_place(r.state_scan(q, t.tanh(key), value, decay, held, *PLACES, *beta))


def dense(heads: int, groups: int, k: int, v: int, *, delta: bool) -> Graph:
    q, key = (given(n, "f32", B, S, groups, k) for n in "qk")
    value, decay = given("v", "f32", B, S, heads, v), given("g", "f32", B, S, heads, 1)
    beta = (given("b", "f32", B, S, heads),) if delta else ()
    return Graph(
        "body", (q, key, value, decay, *beta), (r.linear_scan(q, key, value, decay, *beta),)
    )


def dense_conv(channels: int, taps: int, *, silu: bool = False) -> Graph:
    x, w = given("x", "f32", B, S, channels), given("w", "f32", channels, taps)
    y = r.causal_conv(x, w)
    return Graph("body", (x, w), (t.silu(y) if silu else y,))


BODIES = {
    "conv": conv("f32", 37, 4),
    "conv bf16": conv("bf16", 64, 3),
    "narrow conv": conv("f16", 5, 2),
    "conv and more": conv_and_more("f32", 37, 4),
    "conv and more bf16": conv_and_more("bf16", 80, 2),
    "conv and rows": conv_and_more("f32", 21, 3, rows=True),
    "heads": scan("f32", 6, 3, 12, 37, 1),
    "rows": scan("f32", 4, 4, 5, 48, 5),
    "bf16": scan("bf16", 3, 1, 16, 64, 1),
    "one column": scan("f32", 21, 1, 16, 1, 16),
    "columns": scan("f32", 32, 2, 16, 1, 16),
    "columns bf16": scan("bf16", 16, 1, 32, 1, 1, delta=True),
    "odd column": scan("f32", 3, 3, 7, 1, 1, delta=True),
    "delta": scan("f32", 4, 2, 20, 33, 1, delta=True),
    "many rows": scan("f32", 4, 2, 130, 83, 1),
    "delta wide": scan("bf16", 2, 1, 48, 72, 1, delta=True),
    "delta rows": scan("bf16", 2, 1, 17, 16, 17, delta=True),
    "dense": dense(4, 2, 9, 19, delta=False),
    "dense delta": dense(4, 2, 9, 19, delta=True),
    "dense conv": dense_conv(19, 3),
    "dense conv silu": dense_conv(19, 3, silu=True),
}


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels("cpu", BODIES)


@pytest.fixture(scope="module")
def narrow() -> Kernels:
    return Kernels("cpu:x86-64-v3", BODIES)


STEADY = ("conv", "conv bf16", "heads", "delta", "one column", "columns")


@pytest.fixture(scope="module")
def steady() -> Kernels:
    bodies = {n: BODIES[n] for n in STEADY}
    return Kernels(replace(Target.parse("cpu"), deterministic=True), bodies)


def values(body: Graph, counts: tuple[int, ...], source: tuple[int, ...], target: tuple[int, ...]):
    """The batch of a step: its places, decays that decay, keys of length one, and states of which
    those that no sequence begins with are NaN.
    """
    held = next(i.type for i in body.inputs if i["name"] == "state")
    before = torch.randn(held.array(STATES), dtype=torch.float64)
    before[[n for n in range(STATES) if n not in source]] = float("nan")
    return {
        "starts": torch.tensor([0, *counts]).cumsum(0),
        "source": torch.tensor(source),
        "target": torch.tensor(target),
        "state": before,
        "g": lambda shape: -torch.rand(shape, dtype=torch.float64),
        "b": lambda shape: torch.rand(shape, dtype=torch.float64),
        "k": lambda shape: torch.randn(shape, dtype=torch.float64) / shape[-1] ** 0.5,
    }


@pytest.mark.parametrize("batch", [MANY, ONES, ((1,), (4,), (4,)), ((40,), (-1,), (0,))])
@pytest.mark.parametrize("name", [n for n in BODIES if not n.startswith("dense")])
def test_sequences_go_on_from_their_states(kernels: Kernels, name: str, batch):
    given = values(BODIES[name], *batch)
    kernels.check(name, given, T=sum(batch[0]), N=len(batch[0]), C=STATES)


@pytest.mark.parametrize("name", [n for n in BODIES if n.startswith("dense")])
@pytest.mark.parametrize("size", [(1, 1), (3, 17)])
def test_batches_begin_with_zeros(kernels: Kernels, name: str, size: tuple[int, int]):
    decays = {"g": lambda shape: -torch.rand(shape, dtype=torch.float64)}
    kernels.check(name, decays, B=size[0], S=size[1])


@pytest.mark.parametrize("batch", [MANY, ONES])
@pytest.mark.parametrize(
    "name", ["heads", "rows", "bf16", "many rows", "delta", "delta rows", "columns"]
)
def test_blocks_of_few_tokens(narrow: Kernels, name: str, batch):
    given = values(BODIES[name], *batch)
    narrow.check(name, given, T=sum(batch[0]), N=len(batch[0]), C=STATES)


CUTS = ([(0, 4), (4, 5), (5, 11)], [(i, i + 1) for i in range(11)])


@pytest.mark.parametrize("name", STEADY)
def test_tokens_give_the_same_bits_whatever_the_steps_they_come_in(steady: Kernels, name: str):
    given = drawn(BODIES[name], 11)
    one = run(steady, name, given, [(0, 11)])
    for cuts in CUTS:
        for have, want in zip(run(steady, name, given, cuts), one, strict=True):
            assert torch.equal(have, want)


@pytest.mark.parametrize("name", ["heads", "rows", "many rows", "delta", "one column", "columns"])
def test_steps_change_no_more_than_the_order_of_sums(kernels: Kernels, name: str):
    given = drawn(BODIES[name], 11)
    one = run(kernels, name, given, [(0, 11)])
    for cuts in CUTS:
        for have, want in zip(run(kernels, name, given, cuts), one, strict=True):
            torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))


def drawn(body: Graph, total: int) -> dict:
    """The inputs of a sequence of so many tokens."""
    given = values(body, (total,), (-1,), (0,))
    for i in body.inputs:
        if i["name"] not in given or callable(given[i["name"]]):
            size = (total, *i.type.shape[1:]) if i["name"] != "w" else i.type.shape
            given[i["name"]] = torch.randn([int(d) for d in size], dtype=torch.float64) * 0.3
    return given


def run(kernels: Kernels, name: str, given: dict, cuts: list[tuple[int, int]]):
    """All rows, and the state behind them, of a sequence that comes in these parts."""
    body, held, rows = kernels.bodies[name], given["state"], []
    for begin, end in cuts:
        batch = {"starts": torch.tensor([0, end - begin]), "target": torch.tensor([0])}
        batch |= {"source": torch.tensor([-1 if begin == 0 else 0]), "state": held}
        values = []
        for i in body.inputs:
            value = batch.get(i["name"], given[i["name"]])
            rows_alone = i["name"] not in {*batch, "w"}
            value = value[begin:end] if rows_alone else value
            values.append(value.to(DTYPES[i.type.dtype]))
        shape = (end - begin, *(int(d) for d in body.outputs[0].type.shape[1:]))
        made, held = kernels.run(name, values, [shape, tuple(held.shape)])
        rows.append(made)
    return torch.cat(rows), held[0]
