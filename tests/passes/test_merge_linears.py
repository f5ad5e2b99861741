"""Linears over one value: merged in order, biases made up, what must stay apart stays."""

from __future__ import annotations

from check import check_pass
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node, input_, parameter
from ferrule.ir.ops import model
from ferrule.ir.ops import tensor as t
from ferrule.ir.text import parse_graph
from ferrule.ir.types import TensorType
from ferrule.passes.merge_linears import MergeLinears

S = dim("S")
BEFORE = """
graph m(%x: f32[S, 6]) where S in [1, 64] {
  %0 = parameter {name = "gate", type = f32[5, 6]} : f32[5, 6]
  %1 = linear %x %0 : f32[S, 5]   from mlp.gate (m.py:1)
  %2 = silu %1 : f32[S, 5]
  %3 = parameter {name = "up", type = f32[5, 6]} : f32[5, 6]
  %4 = linear %x %3 : f32[S, 5]   from mlp.up (m.py:2)
  %5 = mul %2 %4 : f32[S, 5]
  return %5 as y
}
"""
AFTER = """
graph m(%x: f32[S, 6]) where S in [1, 64] {
  %0 = parameter {name = "gate", type = f32[5, 6]} : f32[5, 6]
  %1 = parameter {name = "up", type = f32[5, 6]} : f32[5, 6]
  %2 = concat %0 %1 {axis = 0} : f32[10, 6]
  %3 = linear %x %2 : f32[S, 10]
  %4 = slice %3 {axis = 1, start = 0, stop = 5} : f32[S, 5]
  %5 = silu %4 : f32[S, 5]
  %6 = slice %3 {axis = 1, start = 5, stop = 10} : f32[S, 5]
  %7 = mul %5 %6 : f32[S, 5]
  return %7 as y
}
"""
X = input_(name="x", type=TensorType("f32", (S, 6)))


def weight(name: str, *shape: int) -> Node:
    return parameter(name=name, type=TensorType("f32", shape))


def graph(*outputs: Node) -> Graph:
    return Graph("m", (X,), outputs, bounds={"S": (1, 64)})


def test_gate_and_up():
    check_pass(MergeLinears(), BEFORE, AFTER)


def test_layers_that_share_their_weights():
    shared, own, x2 = [weight(n, 4, 6) for n in "kv"], weight("q", 5, 6), t.tanh(X)
    both = [t.mul(*(model.linear(x, w) for w in shared)) for x in (X, x2)]
    after = check_pass(MergeLinears(), graph(*both))
    wholes = [n for n in after.nodes() if n.op is model.linear]
    assert len(wholes) == 2 and len({n.inputs[1] for n in wholes}) == 1
    # Where one layer has more beside them, the shared ones would be stored twice.
    more = t.neg(model.linear(X, own))
    apart = graph(*both, more)
    assert check_pass(MergeLinears(), apart) == apart


def test_origins_merge():
    result = MergeLinears().run(parse_graph(BEFORE))
    whole = next(n for n in result.nodes() if n.op is model.linear)
    assert result.origin(whole) == ("mlp.gate (m.py:1)", "mlp.up (m.py:2)")


def test_a_missing_bias_is_zero():
    q = model.linear(X, weight("q", 4, 6), weight("qb", 4))
    k = model.linear(X, weight("k", 2, 6))
    result = check_pass(MergeLinears(), graph(t.neg(q), t.neg(k)))
    assert sum(n.op is model.linear for n in result.nodes()) == 1


def test_linears_over_merged_linears():
    first = model.linear(X, weight("a", 6, 6)), model.linear(X, weight("b", 6, 6))
    inner = t.add(*first)
    then = model.linear(inner, weight("c", 3, 6)), model.linear(inner, weight("d", 3, 6))
    result = check_pass(MergeLinears(), graph(t.mul(*then)))
    assert sum(n.op is model.linear for n in result.nodes()) == 2


def test_what_stays_apart():
    tied = weight("tied", 4, 6)
    row = t.slice_(tied, axis=0, start=0, stop=1)
    outputs = (
        t.neg(model.linear(X, tied)),  # stored once
        t.neg(row),
        model.linear(X, weight("out", 4, 6)),  # an output itself
        t.neg(model.linear(X, t.reshape(t.slice_(X, axis=0, start=0, stop=1), shape=(1, 6)))),
        t.neg(model.linear(X, weight("alone", 4, 6))),
    )
    check_pass(MergeLinears(), graph(*outputs), graph(*outputs))


def test_linears_of_one_choice_of_experts():
    choice = input_(name="e", type=TensorType("i64", (S,)))
    gate = model.expert_linear(X, weight("gates", 5, 3, 6), choice)
    up = model.expert_linear(X, weight("ups", 5, 3, 6), choice, weight("up_biases", 5, 3))
    before = Graph("m", (X, choice), (t.mul(t.silu(gate), up),), bounds={"S": (1, 64)})
    result = check_pass(MergeLinears(), before, ranges={"e": (0, 5)})
    whole = [n for n in result.nodes() if n.op is model.expert_linear]
    assert len(whole) == 1 and whole[0].shape == (S, 6)
