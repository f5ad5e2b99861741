"""Ops that a backend lacks, said by others: the same values."""

from __future__ import annotations

import pytest
from check import check_pass
from ferrule.codegen.backend import Template
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node, input_
from ferrule.ir.ops import model, recurrent
from ferrule.ir.ops import tensor as t
from ferrule.ir.types import TensorType
from ferrule.passes.spell_out import SpellOut

B, S = dim("B"), dim("S")


def given(name: str, dtype: str, *shape: object) -> Node:
    return input_(name=name, type=TensorType(dtype, tuple(shape)))  # pyright: ignore[reportArgumentType]


def attention() -> Node:
    q = given("q", "f32", B, 4, S, 6)
    k, v = given("k", "f32", B, 2, S, 6), given("v", "f32", B, 2, S, 5)
    return model.attention(q, k, v, scale=0.5, causal=True, window=3)


def conv() -> Node:
    return recurrent.causal_conv(given("x", "bf16", B, S, 5), given("w", "bf16", 5, 3))


def conv1d() -> Node:
    x, w, b = given("x", "f32", B, 6, S), given("w", "f32", 4, 3, 3), given("b", "f32", 4)
    return t.conv1d(x, w, b, stride=2, padding=2, dilation=2, groups=2)


def scan(*, beta: bool, wide: bool) -> Node:
    q, k = given("q", "f32", B, S, 2, 3), given("k", "f32", B, S, 2, 3)
    v, g = given("v", "f32", B, S, 4, 5), given("g", "f32", B, S, 4, 3 if wide else 1)
    more = (given("b", "f32", B, S, 4),) if beta else ()
    return recurrent.linear_scan(q, k, v, t.neg(t.abs_(g)), *more)


CASES = {
    "attention": attention,
    "conv": conv,
    "conv1d": conv1d,
    "scan": lambda: scan(beta=False, wide=True),
    "delta": lambda: scan(beta=True, wide=False),
}


def graph(node: Node) -> Graph:
    inputs = [n for n in Graph("x", (), (node,)).nodes() if n.op.name == "input"]
    return Graph("main", tuple(inputs), (node,), bounds={"B": (1, 4), "S": (3, 16)})


@pytest.mark.parametrize("name", CASES)
def test_what_no_template_takes_is_said_by_others(name: str) -> None:
    node = CASES[name]()
    made = check_pass(SpellOut(), graph(node))
    assert node.op.name not in {n.op.name for n in made.nodes()}


def test_what_a_template_takes_stays() -> None:
    before = graph(attention())
    templates = {"attention": Template(frozenset({"attention"}))}
    assert SpellOut(templates).run(before) == before
