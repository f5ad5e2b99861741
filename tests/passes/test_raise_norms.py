"""Norms in every spelling that model sources have."""

from __future__ import annotations

import pytest
from check import check_pass
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node, input_, parameter
from ferrule.ir.ops import model
from ferrule.ir.ops import tensor as t
from ferrule.ir.types import TensorType
from ferrule.passes.canonicalize import Canonicalize
from ferrule.passes.raise_norms import RaiseNorms

B, S = dim("B"), dim("S")
BEFORE = """
graph m(%x: bf16[B, S, 6]) where B in [1, 4], S in [1, 64] {
  %0 = parameter {name = "w", type = bf16[6]} : bf16[6]
  %1 = cast %x {dtype = "f32"} : f32[B, S, 6]
  %2 = mul %1 %1 : f32[B, S, 6]
  %3 = reduce_sum %2 {axes = (2,), keepdims = true} : f32[B, S, 1]
  %4 = constant {value = 0.16666666666666666, dtype = "f32"} : f32[]
  %5 = mul %3 %4 : f32[B, S, 1]
  %6 = constant {value = 1e-06, dtype = "f32"} : f32[]
  %7 = add %5 %6 : f32[B, S, 1]
  %8 = rsqrt %7 : f32[B, S, 1]
  %9 = mul %1 %8 : f32[B, S, 6]
  %10 = cast %9 {dtype = "bf16"} : bf16[B, S, 6]
  %11 = mul %0 %10 : bf16[B, S, 6]
  return %11 as y
}
"""
AFTER = """
graph m(%x: bf16[B, S, 6]) where B in [1, 4], S in [1, 64] {
  %0 = parameter {name = "w", type = bf16[6]} : bf16[6]
  %1 = rms_norm %x %0 {eps = 1e-06} : bf16[B, S, 6]
  return %1 as y
}
"""


def test_llama():
    check_pass(RaiseNorms(), BEFORE, AFTER)


X = input_(name="x", type=TensorType("f32", (B, S, 6)))
H = input_(name="h", type=TensorType("bf16", (B, S, 6)))
W = parameter(name="w", type=TensorType("f32", (6,)))
V = parameter(name="v", type=TensorType("f32", (6,)))
L = parameter(name="l", type=TensorType("bf16", (6,)))


def number(value: float, dtype: str = "f32") -> Node:
    return t.scalar(value, dtype)


def mean(x: Node) -> Node:
    total = t.reduce_sum(x, axes=(len(x.shape) - 1,), keepdims=True)
    return t.div(total, number(6, x.dtype))


def inverse(x: Node, eps: float = 1e-5) -> Node:
    return t.rsqrt(t.add(mean(t.mul(x, x)), number(eps)))


def gemma(x: Node, w: Node) -> Node:
    wide, gain = t.cast(x, dtype="f32"), t.add(number(1), t.cast(w, dtype="f32"))
    return t.cast(t.mul(t.mul(wide, inverse(wide)), gain), dtype=x.dtype)


def centred(x: Node) -> Node:
    return t.sub(x, mean(x))


def variance(x: Node) -> Node:
    return mean(t.pow_(centred(x), number(2)))


def by_squares(x: Node) -> Node:
    return t.sub(mean(t.mul(x, x)), t.mul(mean(x), mean(x)))


def root(of: Node) -> Node:
    return t.sqrt(t.add(of, number(1e-5)))


def core(x: Node) -> Node:
    return t.mul(x, inverse(x))


def layer(x: Node, *wb: Node) -> Node:
    return model.layer_norm(x, *wb, eps=1e-5)


SPELLINGS: dict[str, tuple[Node, Node]] = {
    "no weight": (core(X), model.rms_norm(X, eps=1e-5)),
    "no epsilon": (t.mul(X, t.rsqrt(mean(t.mul(X, X)))), model.rms_norm(X, eps=0.0)),
    "weight on the right": (t.mul(core(X), W), model.rms_norm(X, W, eps=1e-5)),
    "weight spread": (
        t.mul(t.broadcast(t.reshape(W, shape=(1, 1, 6)), shape=(B, S, 6)), core(X)),
        model.rms_norm(X, W, eps=1e-5),
    ),
    "gemma": (gemma(X, W), model.rms_norm(X, W, eps=1e-5, offset=1.0)),
    "gemma in bfloat16": (gemma(H, L), model.rms_norm(H, L, eps=1e-5, offset=1.0)),
    "over a root": (
        t.div(X, root(mean(t.mul(X, X)))),
        model.rms_norm(X, eps=1e-5),
    ),
    "power": (
        t.mul(X, t.pow_(t.add(mean(t.mul(X, X)), number(1e-5)), number(-0.5))),
        model.rms_norm(X, eps=1e-5),
    ),
    "one over a root": (
        t.mul(X, t.div(number(1), root(mean(t.mul(X, X))))),
        model.rms_norm(X, eps=1e-5),
    ),
    "mean without keeping the axis": (
        t.mul(
            X,
            t.rsqrt(
                t.reshape(t.div(t.reduce_sum(t.mul(X, X), axes=(2,)), number(6)), shape=(B, S, 1))
            ),
        ),
        model.rms_norm(X, eps=0.0),
    ),
    "weight wider than the result": (
        t.mul(W, t.cast(t.cast(core(t.cast(H, dtype="f32")), dtype="bf16"), dtype="f32")),
        t.mul(W, t.cast(model.rms_norm(H, eps=1e-5), dtype="f32")),
    ),
    "layer norm": (
        t.add(t.mul(t.div(centred(X), root(variance(X))), W), V),
        layer(X, W, V),
    ),
    "cohere": (
        t.mul(W, t.mul(centred(X), t.rsqrt(t.add(variance(X), number(1e-5))))),
        layer(X, W),
    ),
    "layer norm by squares": (
        t.div(centred(X), root(by_squares(X))),
        layer(X),
    ),
    "scaled by the size": (
        t.mul(core(X), number(0.5)),
        t.mul(model.rms_norm(X, eps=1e-5), number(0.5)),
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spelling(name: str):
    before, after = (
        Graph("m", (X, H), (o,), bounds={"B": (1, 4), "S": (1, 64)}) for o in SPELLINGS[name]
    )
    check_pass(RaiseNorms(), Canonicalize().run(before), after)


@pytest.mark.parametrize(
    "left",
    [
        t.mul(X, t.rsqrt(t.reduce_sum(t.mul(X, X), axes=(2,), keepdims=True))),
        t.mul(X, t.rsqrt(t.mul(t.reduce_sum(t.mul(X, X), axes=(1,), keepdims=True), number(0.2)))),
        t.mul(t.neg(X), inverse(X)),
    ],
)
def test_other_sums_stay(left: Node):
    graph = Graph("m", (X, H), (left,), bounds={"B": (1, 4), "S": (1, 64)})
    check_pass(RaiseNorms(), graph, graph)
