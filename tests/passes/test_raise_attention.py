"""Attention in every spelling that model sources have."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from check import check_pass
from ferrule.compiler.reference import evaluate
from ferrule.ir.dims import Dim, dim
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node, input_, parameter
from ferrule.ir.ops import model
from ferrule.ir.ops import tensor as t
from ferrule.ir.types import TensorType
from ferrule.passes.canonicalize import Canonicalize
from ferrule.passes.raise_attention import RaiseAttention

BEFORE = """
graph m(%q: f32[B, 4, S, 6], %k: f32[B, 4, S, 6], %v: f32[B, 4, S, 5], %m: f32[B, 1, S, S]) where B in [1, 3], S in [1, 9] {
  %0 = transpose %k {permutation = (0, 1, 3, 2)} : f32[B, 4, 6, S]
  %1 = matmul %q %0 : f32[B, 4, S, S]
  %2 = constant {value = 0.3, dtype = "f32"} : f32[]
  %3 = mul %1 %2 : f32[B, 4, S, S]
  %4 = add %3 %m : f32[B, 4, S, S]
  %5 = softmax %4 {axis = 3} : f32[B, 4, S, S]
  %6 = matmul %5 %v : f32[B, 4, S, 5]
  return %6 as y
}
"""  # noqa: E501
AFTER = """
graph m(%q: f32[B, 4, S, 6], %k: f32[B, 4, S, 6], %v: f32[B, 4, S, 5], %m: f32[B, 1, S, S]) where B in [1, 3], S in [1, 9] {
  %0 = attention %q %k %v %m {scale = 0.3, extras = ("mask",)} : f32[B, 4, S, 5]
  return %0 as y
}
"""  # noqa: E501
B, S = dim("B"), dim("S")
BOUNDS = {"B": (1, 3), "S": (1, 9)}


def of(name: str, *shape: object, dtype: str = "f32") -> Node:
    return input_(name=name, type=TensorType(dtype, shape))  # type: ignore[arg-type]


Q, K, V = of("q", B, 4, S, 6), of("k", B, 4, S, 6), of("v", B, 4, S, 5)
KG, VG = of("kg", B, 2, S, 6), of("vg", B, 2, S, 5)
QH, KH, VH = (of(f"{n}h", B, 4, S, 6, dtype="bf16") for n in "qkv")
MASK = of("mask", B, 1, S, S)
ROUTER = parameter(name="w", type=TensorType("f32", (6, 3)))
BIAS = of("bias", B, 4, 1, S)
SINKS = parameter(name="sinks", type=TensorType("f32", (4,)))
INPUTS = (Q, K, V, KG, VG, QH, KH, VH, MASK, BIAS)


def number(value: float, dtype: str = "f32") -> Node:
    return t.scalar(value, dtype)


def swapped(x: Node) -> Node:
    rank = len(x.shape)
    return t.transpose(x, permutation=(*range(rank - 2), rank - 1, rank - 2))


def scores(q: Node = Q, k: Node = K, scale: float = 1.0) -> Node:
    product = t.matmul(q, swapped(k))
    return product if scale == 1 else t.mul(product, number(scale, q.dtype))


def weigh(z: Node, v: Node = V) -> Node:
    return t.matmul(t.softmax(z, axis=len(z.shape) - 1), v)


def causal() -> Node:
    row, column = (
        t.reshape(t.iota(size=S, dtype="i64"), shape=s) for s in ((1, 1, S, 1), (1, 1, 1, S))
    )
    return t.le(column, row)


def additive(fill: float) -> Node:
    return t.where(causal(), number(0.0), number(fill))


def attend(q: Node = Q, k: Node = K, v: Node = V, mask: Node | None = None, **more: object) -> Node:
    extras = {} if mask is None else {"extras": ("mask",)}
    given = () if mask is None else (mask,)
    return model.attention(q, k, v, *given, **{"scale": 1.0, **extras, **more})


LOWEST = -3.4028234663852886e38


def softcapped() -> Node:
    z = t.mul(t.tanh(t.div(scores(scale=0.25), number(7))), number(7))
    return weigh(t.add(z, MASK))


def with_sinks(first: bool, shifted: bool) -> Node:
    sinks = t.broadcast(t.reshape(SINKS, shape=(1, 4, 1, 1)), shape=(B, 4, S, 1))
    inner = t.add(scores(scale=0.5), MASK)
    z = t.concat(*((sinks, inner) if first else (inner, sinks)), axis=3)
    if shifted:
        z = t.sub(z, t.reduce_max(z, axes=(3,), keepdims=True))
    p = t.softmax(z, axis=3)
    part = (
        t.slice_(p, axis=3, start=1, stop=S + 1) if first else t.slice_(p, axis=3, start=0, stop=S)
    )
    return t.matmul(part, V)


def bloom() -> Node:
    q, k, v = (t.reshape(x, shape=(4 * B, S, x.shape[3])) for x in (Q, K, V))
    z = t.add(t.reshape(BIAS, shape=(4 * B, 1, S)), t.mul(t.matmul(q, swapped(k)), number(0.4)))
    z = t.add(t.reshape(z, shape=(B, 4, S, S)), MASK)
    p = t.reshape(t.softmax(z, axis=3), shape=(4 * B, S, S))
    return t.reshape(t.matmul(p, v), shape=(B, 4, S, 5))


def folded() -> Node:
    q, k, v = (t.reshape(x, shape=(4 * B, S, x.shape[3])) for x in (Q, K, V))
    return t.reshape(weigh(t.matmul(q, swapped(k)), v), shape=(B, 4, S, 5))


def heads_in_batch(count: Dim) -> Node:
    """As SDPA over [B H, S, D] is imported."""
    q, k, v = (t.reshape(x, shape=(1, count, S, x.shape[3])) for x in (Q, K, V))
    return attend(q, k, v, t.reshape(BIAS, shape=(1, count, 1, S)))


def grouped() -> Node:
    """Grouped heads as a fifth axis: [B, G, H / G, S, D]."""
    q = t.reshape(Q, shape=(B, 2, 2, S, 6))
    k, v = (t.reshape(x, shape=(B, 2, 1, S, x.shape[3])) for x in (KG, VG))
    return t.reshape(
        weigh(t.add(scores(q, k), t.reshape(MASK, shape=(B, 1, 1, S, S))), v), shape=(B, 4, S, 5)
    )


def repeated(x: Node) -> Node:
    apart = t.reshape(x, shape=(B, 2, 1, S, x.shape[3]))
    return t.reshape(
        t.broadcast(apart, shape=(B, 2, 2, S, x.shape[3])), shape=(B, 4, S, x.shape[3])
    )


def repeated_later(x: Node) -> Node:
    """Repeated in [B, S, G, D], then transposed."""
    turned = t.transpose(x, permutation=(0, 2, 1, 3))
    apart = t.reshape(turned, shape=(B, S, 2, 1, x.shape[3]))
    wide = t.broadcast(apart, shape=(B, S, 2, 2, x.shape[3]))
    return t.transpose(t.reshape(wide, shape=(B, S, 4, x.shape[3])), permutation=(0, 2, 1, 3))


def wide() -> Node:
    z = t.softmax(t.cast(scores(QH, KH, 0.5), dtype="f32"), axis=3)
    return t.matmul(t.cast(z, dtype="bf16"), VH)


def widened() -> Node:
    q, k = t.cast(QH, dtype="f32"), t.cast(KH, dtype="f32")
    return t.matmul(t.cast(t.softmax(scores(q, k), axis=3), dtype="bf16"), VH)


def first(x: Node) -> Node:
    return t.slice_(x, axis=1, start=0, stop=1)


def one_head() -> tuple[Node, Node]:
    q, k, v = (
        t.reshape(t.slice_(x, axis=1, start=0, stop=1), shape=(B, S, x.shape[3])) for x in (Q, K, V)
    )
    q4, k4, v4 = (t.slice_(x, axis=1, start=0, stop=1) for x in (Q, K, V))
    return weigh(scores(q, k), v), t.reshape(attend(q4, k4, v4), shape=(B, S, 5))


SPELLINGS: dict[str, tuple[Node, Node]] = {
    "plain": (weigh(scores()), attend()),
    "divided": (weigh(t.div(scores(), number(math.sqrt(6)))), attend(scale=1 / math.sqrt(6))),
    "queries scaled": (weigh(scores(t.mul(Q, number(0.5)))), attend(scale=0.5)),
    "both scaled": (
        weigh(scores(t.mul(Q, number(0.5)), t.div(K, number(3)))),
        attend(scale=0.5 / 3),
    ),
    "added mask": (weigh(t.add(MASK, scores(scale=0.5))), attend(mask=MASK, scale=0.5)),
    "added infinity": (weigh(t.add(scores(), additive(-math.inf))), attend(mask=causal())),
    "filled": (weigh(t.where(causal(), scores(), number(-math.inf))), attend(mask=causal())),
    "filled where not": (
        weigh(t.where(t.logical_not(causal()), number(-math.inf), scores())),
        attend(mask=causal()),
    ),
    "filled with the lowest": (
        weigh(t.where(causal(), scores(), number(LOWEST))),
        attend(mask=additive(LOWEST)),
    ),
    "filled and added": (
        weigh(t.add(t.where(causal(), scores(scale=0.5), number(LOWEST)), MASK)),
        attend(mask=t.add(additive(LOWEST), MASK), scale=0.5),
    ),
    "two masks": (
        weigh(t.add(t.add(scores(), MASK), BIAS)),
        attend(mask=t.add(MASK, BIAS)),
    ),
    "masks scaled": (
        weigh(t.mul(t.add(scores(), BIAS), number(0.3))),
        attend(mask=t.mul(BIAS, number(0.3)), scale=0.3),
    ),
    "floor": (weigh(t.maximum(t.add(scores(), MASK), number(LOWEST))), attend(mask=MASK)),
    "gemma2": (softcapped(), attend(mask=MASK, scale=0.25, softcap=7.0)),
    "bloom": (bloom(), attend(mask=t.add(BIAS, MASK), scale=0.4)),
    "heads folded into the batch": (folded(), attend()),
    "heads in the batch of the op": (
        t.reshape(heads_in_batch(4 * B), shape=(B, 4, S, 5)),
        attend(mask=BIAS),
    ),
    "five axes": (grouped(), attend(Q, KG, VG, MASK)),
    "keys repeated": (weigh(scores(Q, repeated(KG)), repeated(VG)), attend(Q, KG, VG)),
    "keys repeated before": (
        weigh(scores(Q, repeated_later(KG)), repeated_later(VG)),
        attend(Q, KG, VG),
    ),
    "repeated for the op": (attend(Q, repeated(KG), repeated(VG)), attend(Q, KG, VG)),
    "wide softmax": (wide(), attend(QH, KH, VH, scale=0.5)),
    "wide scores": (widened(), attend(QH, KH, VH)),
    "shared key": (weigh(scores(Q, first(K)), first(V)), attend(Q, first(K), first(V))),
    "one head": one_head(),
    "transposed": (
        t.matmul(swapped(V), swapped(t.softmax(swapped(t.matmul(K, swapped(Q))), axis=3))),
        swapped(attend()),
    ),
}  # fmt: skip


QUERIES_FIRST = (0, 2, 1, 3)


def heads_beside_queries() -> Node:
    """Scores [B, S, H, L], masked [S, 1, L], of keys [B, L, D] that all heads share in part."""
    rows, shared = (t.transpose(x, permutation=QUERIES_FIRST) for x in (Q, K))
    flat = t.reshape(rows, shape=(B, 4 * S, 6))
    key = t.reshape(t.slice_(shared, axis=2, start=0, stop=1), shape=(B, S, 6))
    part = t.reshape(t.matmul(flat, swapped(key)), shape=(B, S, 4, S))
    both = t.add(t.transpose(scores(), permutation=QUERIES_FIRST), part)
    seen = t.transpose(causal(), permutation=QUERIES_FIRST)
    masked = t.where(seen, t.mul(both, number(0.3)), number(-float("inf")))
    weights = t.transpose(t.softmax(masked, axis=3), permutation=QUERIES_FIRST)
    return t.matmul(weights, V)


def values_for_all_heads() -> Node:
    """Weights [B, S, H, L] as [B, S H, L] times values [B, L, D]."""
    rows = t.transpose(scores(), permutation=QUERIES_FIRST)
    weights = t.reshape(t.softmax(rows, axis=3), shape=(B, 4 * S, S))
    value = t.reshape(t.slice_(V, axis=1, start=0, stop=1), shape=(B, S, 5))
    return t.matmul(weights, value)


def less_another() -> Node:
    """Half of the heads' softmax less a share of the other half's."""
    weights = t.softmax(t.add(scores(scale=0.4), MASK), axis=3)
    apart = t.reshape(weights, shape=(B, 2, 2, S, S))
    halves = (t.slice_(apart, axis=2, start=i, stop=i + 1) for i in (0, 1))
    first, second = (t.reshape(h, shape=(B, 2, S, S)) for h in halves)
    return t.matmul(t.sub(first, t.mul(number(0.3), second)), VG)


FRAMES = {
    "heads beside queries": (heads_beside_queries, 1),
    "values for all heads": (values_for_all_heads, 1),
    "less another": (less_another, 2),
}


@pytest.mark.parametrize("name", FRAMES)
def test_scores_in_other_orders(name: str):
    spelled, count = FRAMES[name]
    given = Canonicalize().run(graph(spelled()))
    result = check_pass(RaiseAttention(), given)
    names = [n.op.name for n in result.nodes()]
    assert names.count("attention") == count
    assert "softmax" not in names


def test_heads_that_are_told_from_the_batch_by_a_number_alone():
    flat = [t.reshape(x, shape=(4 * B, S, x.shape[-1])) for x in (Q, K, V)]
    query, key, value = flat
    given = graph(weigh(scores(query, key), value))
    result = check_pass(RaiseAttention(), Canonicalize().run(given))
    (found,) = (n for n in result.nodes() if n.op is model.attention)
    assert found.shape == (B, 4, S, 5)


def test_attention_to_numbers_of_the_model_is_of_each_token_alone():
    memory = (
        parameter(name=n, type=TensorType("f32", (1, 2, 3, d))) for n, d in (("a", 6), ("b", 5))
    )
    key, value = (t.broadcast(m, shape=(B, 2, 3, m.shape[-1])) for m in memory)
    result = check_pass(RaiseAttention(), graph(attend(Q, key, value, scale=0.4)))
    assert not any(n.op is model.attention for n in result.nodes())


@pytest.mark.parametrize("spelled", [True, False])
def test_attention_among_numbers_of_a_token_is_of_each_token_alone(spelled: bool):
    """Queries and keys of [B, S, states, D]: the length stands where heads would."""
    query, key, value = (t.transpose(x, permutation=(0, 2, 1, 3)) for x in (Q, K, V))
    made = weigh(scores(query, key), value) if spelled else attend(query, key, value, scale=0.4)
    result = check_pass(RaiseAttention(), Canonicalize().run(graph(made)))
    assert not any(n.op is model.attention for n in result.nodes())


def graph(*outputs: Node) -> Graph:
    return Graph("m", INPUTS, outputs, bounds=BOUNDS)


def test_masked():
    check_pass(RaiseAttention(), BEFORE, AFTER)


@pytest.mark.parametrize("name", SPELLINGS)
def test_spelling(name: str):
    before, after = SPELLINGS[name]
    simple = Canonicalize()
    check_pass(RaiseAttention(), simple.run(graph(before)), simple.run(graph(after)))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("shifted", [True, False])
def test_sinks(first: bool, shifted: bool):
    after = model.attention(Q, K, V, MASK, SINKS, scale=0.5, extras=("mask", "sinks"))
    before = Canonicalize().run(graph(with_sinks(first, shifted)))
    check_pass(RaiseAttention(), before, graph(after))


@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize("flat", [True, False])
def test_sinks_beside_the_softmax(flat: bool, shifted: bool):
    z = t.add(scores(scale=0.5), MASK)
    top = t.reduce_max(z, axes=(3,), keepdims=True)
    total = t.log(t.reduce_sum(t.exp(t.sub(z, top) if shifted else z), axes=(3,), keepdims=True))
    total = t.add(total, top) if shifted else total
    if flat:
        inner = t.sub(t.reshape(total, shape=(B, 4, S)), t.reshape(SINKS, shape=(4, 1)))
        gate = t.reshape(t.sigmoid(inner), shape=(B, 4, S, 1))
    else:
        gate = t.sigmoid(t.sub(total, t.reshape(SINKS, shape=(1, 4, 1, 1))))
    after = model.attention(Q, K, V, MASK, SINKS, scale=0.5, extras=("mask", "sinks"))
    before = Canonicalize().run(graph(t.mul(gate, weigh(z))))
    check_pass(RaiseAttention(), before, graph(after))


def test_scale_by_a_parameter_goes_to_the_queries():
    by = parameter(name="by", type=TensorType("f32", ()))
    result = check_pass(RaiseAttention(), graph(weigh(t.mul(scores(), by))))
    assert result == graph(attend(t.mul(Q, t.reshape(by, shape=(1, 1, 1, 1)))))


def unused_part() -> Node:
    return t.matmul(
        t.slice_(t.softmax(scores(), axis=3), axis=3, start=0, stop=1),
        t.slice_(V, axis=2, start=0, stop=1),
    )


STAY: dict[str, Callable[[], Node]] = {
    "router": lambda: t.softmax(t.matmul(Q, ROUTER), axis=3),
    "learned values": lambda: t.matmul(
        t.softmax(scores(k=parameter(name="key", type=TensorType("f32", (4, 7, 6)))), axis=3),
        parameter(name="value", type=TensorType("f32", (4, 7, 5))),
    ),
    "softmax over queries": lambda: t.matmul(t.softmax(scores(), axis=2), V),
    "mask inside the softcap": lambda: weigh(t.tanh(t.add(scores(), MASK))),
    "part of the keys": unused_part,
}  # fmt: skip


@pytest.mark.parametrize("name", STAY)
def test_what_is_no_attention_stays(name: str):
    before = graph(STAY[name]())
    check_pass(RaiseAttention(), before, before)


ONES = parameter(name="ones", type=TensorType("f32", (1, 1, 9, 9)))


def square() -> Node:
    """A table of [9, 9] cut to the length."""
    part = t.slice_(ONES, axis=2, start=0, stop=S)
    return t.slice_(part, axis=3, start=0, stop=S)


def test_scores_times_a_mask_of_ones():
    z = t.add(t.mul(scores(), square()), t.mul(t.sub(number(1.0), square()), number(-1e4)))
    found = Canonicalize().run(RaiseAttention().run(Canonicalize().run(graph(weigh(z)))))
    (one,) = (n for n in found.nodes() if n.op is model.attention)
    given = {"q": Q, "k": K, "v": V}
    assert {n["name"] for n in one.inputs[:3]} == set(given)
    lower = torch.tril(torch.ones(1, 1, 9, 9))
    sizes = {"B": 1, "S": 9}
    (mask,) = evaluate(Graph("m", (), (one.inputs[3],)), {}, {"ones": lower}, sizes)
    assert torch.equal(mask > -1e3, lower > 0)
    # What is multiplied by something else and seen is told apart from every mask.
    (odd,) = evaluate(Graph("m", (), (one.inputs[3],)), {}, {"ones": lower * 0.5}, sizes)
    assert torch.isposinf(odd[lower > 0]).sum() == 0  # -5000 hides these too
    halves = torch.ones(1, 1, 9, 9) * 0.999
    (odd,) = evaluate(Graph("m", (), (one.inputs[3],)), {}, {"ones": halves}, sizes)
    assert torch.isposinf(odd).all()
