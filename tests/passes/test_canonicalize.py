"""Identities: each one alone, text and values."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from check import check_pass
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node, input_, parameter
from ferrule.ir.ops import tensor as t
from ferrule.ir.text import print_graph
from ferrule.ir.types import TensorType
from ferrule.passes.canonicalize import Canonicalize
from ferrule.passes.rules.values import holds, rounded

S = dim("S")
X = input_(name="x", type=TensorType("f32", (S, 6)))
Y = input_(name="y", type=TensorType("f32", (S, 6)))
H = input_(name="h", type=TensorType("bf16", (S, 6)))
C = input_(name="c", type=TensorType("bool", (S, 6)))
I = input_(name="i", type=TensorType("i64", (S, 6)))  # noqa: E741
P = t.abs_(Y)
COLUMN = t.slice_(X, axis=1, start=0, stop=1)
BEFORE = """
graph m(%x: f32[S, 6]) where S in [1, 64] {
  %0 = constant {value = 2.0, dtype = "f32"} : f32[]
  %1 = pow %x %0 : f32[S, 6]
  %2 = reduce_sum %1 {axes = (1,)} : f32[S]
  %3 = constant {value = 6.0, dtype = "f32"} : f32[]
  %4 = div %2 %3 : f32[S]
  %5 = reshape %4 {shape = (S, 1)} : f32[S, 1]
  %6 = cast %5 {dtype = "f32"} : f32[S, 1]
  %7 = sqrt %6 : f32[S, 1]
  %8 = broadcast %7 {shape = (S, 6)} : f32[S, 6]
  %9 = div %x %8 : f32[S, 6]
  return %9 as y
}
"""
AFTER = """
graph m(%x: f32[S, 6]) where S in [1, 64] {
  %0 = mul %x %x : f32[S, 6]
  %1 = reduce_sum %0 {axes = (1,), keepdims = true} : f32[S, 1]
  %2 = constant {value = 0.16666666666666666, dtype = "f32"} : f32[]
  %3 = mul %1 %2 : f32[S, 1]
  %4 = rsqrt %3 : f32[S, 1]
  %5 = mul %x %4 : f32[S, 6]
  return %5 as y
}
"""


def number(value: float, dtype: str = "f32") -> Node:
    return t.scalar(value, dtype)


def spread(value: float) -> Node:
    return t.broadcast(number(value), shape=(S, 6))


def graph(*outputs: Node) -> Graph:
    return Graph("m", (X, Y, H, C, I), outputs, bounds={"S": (1, 64)})


def test_several_identities_meet():
    check_pass(Canonicalize(), BEFORE, AFTER)


IDENTITIES: dict[str, tuple[Node, Node]] = {
    "x + 0": (t.add(number(0), X), X),
    "x - 0": (t.sub(X, spread(0)), X),
    "0 - x": (t.sub(number(0), X), t.neg(X)),
    "x * 1": (t.mul(X, number(1)), X),
    "x * -1": (t.mul(X, number(-1)), t.neg(X)),
    "i * 0": (t.mul(I, number(0, "i64")), t.broadcast(number(0, "i64"), shape=(S, 6))),
    "x / 8": (t.div(X, number(8)), t.mul(X, number(0.125))),
    "x / 3 stays": (t.div(X, number(3)), t.div(X, number(3))),
    "(x * 2) * 3": (t.mul(t.mul(X, number(2)), number(3)), t.mul(X, number(6))),
    "x + -y": (t.add(X, t.neg(Y)), t.sub(X, Y)),
    "x - -y": (t.sub(X, t.neg(Y)), t.add(X, Y)),
    "x^3": (t.pow_(X, number(3)), t.mul(t.mul(X, X), X)),
    "x^-0.5": (t.pow_(P, number(-0.5)), t.rsqrt(P)),
    "1 / sqrt(x)": (t.div(number(1), t.sqrt(P)), t.rsqrt(P)),
    "x / sqrt(y)": (t.div(X, t.sqrt(P)), t.mul(X, t.rsqrt(P))),
    "max(x, 0)": (t.maximum(X, number(0)), t.relu(X)),
    "widening and back": (t.cast(t.cast(H, dtype="f32"), dtype="bf16"), H),
    "narrowing stays": (
        t.cast(t.cast(X, dtype="bf16"), dtype="f32"),
        t.cast(t.cast(X, dtype="bf16"), dtype="f32"),
    ),
    "widening, moved, back": (
        t.cast(t.transpose(t.cast(H, dtype="f32"), permutation=(1, 0)), dtype="bf16"),
        t.transpose(H, permutation=(1, 0)),
    ),
    "where true": (t.where(number(True, "bool"), X, Y), X),
    "where not": (t.where(t.logical_not(C), X, Y), t.where(C, Y, X)),
    "where same": (t.where(C, X, X), X),
    "not not": (t.logical_not(t.bitwise_not(C)), C),
    "and true": (t.bitwise_and(C, t.broadcast(number(True, "bool"), shape=(S, 6))), C),
    "or true": (
        t.bitwise_or(C, number(True, "bool")),
        t.broadcast(number(True, "bool"), shape=(S, 6)),
    ),
    "numbers": (t.mul(X, t.sqrt(t.add(number(2), number(7)))), t.mul(X, number(3))),
    "transposes": (t.transpose(t.transpose(X, permutation=(1, 0)), permutation=(1, 0)), X),
    "reshapes": (t.reshape(t.reshape(X, shape=(6 * S,)), shape=(S, 6)), X),
    "slice of all": (t.slice_(X, axis=0, start=0, stop=S), X),
    "slice of slice": (
        t.slice_(t.slice_(X, axis=1, start=1, stop=6), axis=1, start=2, stop=4),
        t.slice_(X, axis=1, start=3, stop=5),
    ),
    "slice of concat": (
        t.slice_(t.concat(X, Y, axis=1), axis=1, start=7, stop=12),
        t.slice_(Y, axis=1, start=1, stop=6),
    ),
    "concat of concat": (
        t.concat(t.concat(X, Y, axis=1), t.concat(X, axis=1), axis=1),
        t.concat(X, Y, X, axis=1),
    ),
    "concat of neighbours": (
        t.concat(
            Y,
            t.slice_(X, axis=1, start=1, stop=3),
            t.slice_(X, axis=1, start=3, stop=5),
            t.slice_(X, axis=1, start=0, stop=1),
            axis=1,
        ),
        t.concat(
            Y,
            t.slice_(X, axis=1, start=1, stop=5),
            t.slice_(X, axis=1, start=0, stop=1),
            axis=1,
        ),
    ),
    "pad of nothing": (t.pad(X, before=(0, 0), after=(0, 0)), X),
    "flip of flip": (t.flip(t.flip(X, axes=(1,)), axes=(1,)), X),
    "reshape of broadcast": (
        t.reshape(t.broadcast(COLUMN, shape=(3, S, 6)), shape=(3, 1, S, 6)),
        t.broadcast(t.reshape(COLUMN, shape=(1, 1, S, 1)), shape=(3, 1, S, 6)),
    ),
    "reshape of a repetition stays": (
        t.reshape(t.broadcast(COLUMN, shape=(S, 6)), shape=(6 * S,)),
        t.reshape(t.broadcast(COLUMN, shape=(S, 6)), shape=(6 * S,)),
    ),
    "slice across a broadcast": (
        t.slice_(t.broadcast(COLUMN, shape=(3, S, 6)), axis=0, start=0, stop=2),
        t.broadcast(COLUMN, shape=(2, S, 6)),
    ),
    "slice along a broadcast": (
        t.slice_(t.broadcast(X, shape=(3, S, 6)), axis=2, start=0, stop=2),
        t.broadcast(t.slice_(X, axis=1, start=0, stop=2), shape=(3, S, 2)),
    ),
    "unary of broadcast": (
        t.cos(t.broadcast(t.slice_(X, axis=1, start=0, stop=1), shape=(S, 6))),
        t.broadcast(t.cos(t.slice_(X, axis=1, start=0, stop=1)), shape=(S, 6)),
    ),
    "outer product": (
        t.matmul(t.reshape(X, shape=(S, 6, 1)), t.reshape(Y, shape=(S, 1, 6))),
        t.mul(t.reshape(X, shape=(S, 6, 1)), t.reshape(Y, shape=(S, 1, 6))),
    ),
    "sum, then the axis put back": (
        t.reshape(t.reduce_sum(X, axes=(1,)), shape=(S, 1)),
        t.reduce_sum(X, axes=(1,), keepdims=True),
    ),
    "silu": (t.mul(t.sigmoid(X), X), t.silu(X)),
    "softmax, shifted": (
        t.softmax(t.sub(X, t.reduce_max(X, axes=(1,), keepdims=True)), axis=1),
        t.softmax(X, axis=1),
    ),
    "exp and log stay": (t.log(t.exp(X)), t.log(t.exp(X))),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_identity(name: str):
    before, after = IDENTITIES[name]
    check_pass(Canonicalize(), graph(before), graph(after))


def gate(inner: Node) -> Node:
    return t.mul(t.mul(number(0.5), X), t.add(inner, number(1)))


def test_gelus_written_out():
    cube = t.pow_(X, number(3))
    inner = t.mul(number(math.sqrt(2 / math.pi)), t.add(X, t.mul(number(0.044715), cube)))
    by_tanh = gate(t.tanh(inner))
    check_pass(Canonicalize(), graph(by_tanh), graph(t.gelu(X, approximate="tanh")))
    by_erf = gate(t.erf(t.div(X, number(1.4142135))))
    check_pass(Canonicalize(), graph(by_erf), graph(t.gelu(X)))


def test_bloom_gelu():
    inner = t.mul(
        t.mul(number(0.79788456), X),
        t.add(number(1.0), t.mul(t.mul(number(0.044715), X), X)),
    )
    check_pass(Canonicalize(), graph(gate(t.tanh(inner))), graph(t.gelu(X, approximate="tanh")))


def test_constants_are_rounded_as_their_dtype_holds_them():
    assert rounded(0.1, "f32") == 0.10000000149011612
    assert rounded(0.1, "bf16") == 0.10009765625
    assert rounded(1e39, "f32") == math.inf and rounded(-2.7, "i32") == -2
    assert rounded(300, "i8") is None
    once = t.cast(t.cast(number(0.1), dtype="bf16"), dtype="f32")
    check_pass(Canonicalize(), graph(t.add(X, once)), graph(t.add(X, number(0.10009765625))))


def test_holding_is_exact():
    assert holds("f32", "bf16") and holds("f64", "i32") and holds("bf16", "i8")
    assert not holds("f16", "bf16") and not holds("f32", "i32") and not holds("bf16", "f16")


def test_settles_at_once():
    first = Canonicalize().run(graph(*(before for before, _ in IDENTITIES.values())))
    assert print_graph(Canonicalize().run(first)) == print_graph(first)


@pytest.mark.parametrize(
    ("shape", "wide", "axis"), [((1, 6), (S, 6), 1), ((6,), (S, 6), 1), ((6, 1), (6, 6), 0)]
)
def test_places_of_rows_that_are_all_the_same(shape: object, wide: object, axis: int):
    row = parameter(name="row", type=TensorType("f32", shape))  # type: ignore[arg-type]
    index = input_(name="index", type=TensorType("i64", (S, 6)))
    taken = t.take_along(t.broadcast(row, shape=wide), index, axis=axis)
    before = Graph("m", (index,), (taken,), ("y",), {"S": (1, 9)})
    after = check_pass(Canonicalize(), before, ranges={"index": (0, 6)})
    names = [n.op.name for n in after.nodes()]
    assert "take" in names and "take_along" not in names


def test_places_of_rows_that_differ_stay():
    row = parameter(name="row", type=TensorType("f32", (4, 1)))
    index = input_(name="index", type=TensorType("i64", (4, 6)))
    taken = t.take_along(t.broadcast(row, shape=(4, 6)), index, axis=1)
    before = Graph("m", (index,), (taken,), ("y",), {})
    assert "take_along" in [n.op.name for n in Canonicalize().run(before).nodes()]


@pytest.mark.parametrize(
    ("shape", "axis"), [((), 0), ((6,), 0), ((1, 6), 0), ((S, 1), 1), ((5, 1, 1), 1), ((1, 1), 1)]
)
def test_rows_taken_of_rows_that_are_all_the_same(shape: object, axis: int):
    row = input_(name="row", type=TensorType("f32", shape))  # type: ignore[arg-type]
    wide = {3: (5, 6, 7), 0: (6, 7)}.get(len(row.shape), (S, 6))
    index = input_(name="index", type=TensorType("i64", (3, 2)))
    before = Graph("m", (row, index), (t.take(t.broadcast(row, shape=wide), index, axis=axis),))
    after = check_pass(
        Canonicalize(), replace(before, bounds={"S": (6, 9)}), ranges={"index": (0, 5)}
    )
    assert "take" not in [n.op.name for n in after.nodes()]


def test_rows_taken_of_rows_that_differ_stay():
    row = input_(name="row", type=TensorType("f32", (4, 1)))
    index = input_(name="index", type=TensorType("i64", (3,)))
    before = Graph("m", (row, index), (t.take(t.broadcast(row, shape=(4, 6)), index, axis=0),))
    assert "take" in [n.op.name for n in Canonicalize().run(before).nodes()]
