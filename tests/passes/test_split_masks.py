"""Masks with a part by the keys' tokens: that part goes to the keys."""

from __future__ import annotations

import math

import pytest
from check import check_pass
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node, input_, walk
from ferrule.ir.ops import model
from ferrule.ir.ops import tensor as t
from ferrule.ir.types import TensorType
from ferrule.passes.canonicalize import Canonicalize
from ferrule.passes.split_masks import SplitMasks

B, S = dim("B"), dim("S")
LOWEST = -3.4028234663852886e38


def of(name: str, *shape: object) -> Node:
    return input_(name=name, type=TensorType("f32", shape))  # type: ignore[arg-type]


Q, K, V = of("q", B, 4, S, 6), of("k", B, 4, S, 6), of("v", B, 4, S, 5)
KG, VG = of("kg", B, 2, S, 6), of("vg", B, 2, S, 5)


def number(value: float) -> Node:
    return t.scalar(value, "f32")


def causal() -> Node:
    row, column = (
        t.reshape(t.iota(size=S, dtype="i64"), shape=s) for s in ((1, 1, S, 1), (1, 1, 1, S))
    )
    return t.le(column, row)


def additive() -> Node:
    return t.where(causal(), number(0.0), number(LOWEST))


def graph(q: Node, k: Node, v: Node, mask: Node, **more: object) -> Graph:
    attended = model.attention(q, k, v, mask, scale=0.3, extras=("mask",), **more)
    inputs = tuple(dict.fromkeys((Q, K, V, k, v)))
    return Canonicalize().run(Graph("m", inputs, (attended,), ("y",), {"B": (1, 3), "S": (1, 9)}))


def attention_of(found: Graph) -> Node:
    (one,) = (n for n in found.nodes() if n.op is model.attention)
    return one


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("spelling", ["where", "not", "add"])
def test_a_bias_by_key_joins_the_keys(grouped: bool, spelling: str):
    k, v, heads = (KG, VG, 2) if grouped else (K, V, 4)
    bias = t.slice_(t.transpose(K, permutation=(0, 1, 3, 2)), axis=1, start=0, stop=heads)
    bias = t.slice_(bias, axis=2, start=0, stop=1)  # [B, heads, 1, S]
    mask = {
        "where": lambda: t.where(causal(), bias, number(-math.inf)),
        "not": lambda: t.where(t.logical_not(causal()), number(LOWEST), bias),
        "add": lambda: t.add(t.broadcast(bias, shape=(B, heads, S, S)), additive()),
    }[spelling]()
    wide = mask
    if grouped:
        apart = t.reshape(mask, shape=(B, 2, 1, S, S))
        wide = t.reshape(t.broadcast(apart, shape=(B, 2, 2, S, S)), shape=(B, 4, S, S))
    before = graph(Q, k, v, wide)
    found = check_pass(SplitMasks(), before)
    one = attention_of(found)
    assert [n.shape[-1] for n in one.inputs[:3]] == [7, 7, 5]
    assert one.inputs[1].shape[1] == heads
    assert not any(n.op.name == "input" for n in walk(one.inputs[3:]))


def test_a_mask_by_query_and_key_stays():
    product = t.add(t.transpose(K, permutation=(0, 1, 3, 2)), number(1.0))
    by_both = t.slice_(product, axis=2, start=0, stop=1)
    by_both = t.mul(by_both, t.slice_(Q, axis=3, start=0, stop=1))
    before = graph(Q, K, V, t.add(by_both, additive()))
    assert attention_of(SplitMasks().run(before)).inputs[1].shape[-1] == 6
