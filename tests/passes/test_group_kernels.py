"""Kernels: what a layer becomes, equal bodies for equal layers, nothing outside, values kept."""

from __future__ import annotations

from collections import Counter

import networkx as nx
import numpy as np
import pytest
from check import check_pass
from ferrule.codegen.backend import Backend, Template, cpu_backend, gpu_backend
from ferrule.ir.errors import IRError
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node
from ferrule.ir.target import Target
from ferrule.ir.text import parse_graph, print_graph
from ferrule.ir.verify import verify
from ferrule.passes.cache_attention import CacheAttention
from ferrule.passes.group_kernels import GroupKernels
from ferrule.passes.layout_weights import LayoutWeights
from ferrule.passes.select_logit_rows import SelectLogitRows
from ferrule.passes.split_preparation import Split, split_preparation
from llama_graph import VOCAB, llama
from steps import check_paged

BACKEND: Backend = cpu_backend(Target.parse("cpu:znver4"))


def serving(layers: int, dtype: str = "f32") -> Split:
    """The step and preparation graphs of a Llama-shaped model."""
    graph = SelectLogitRows().run(CacheAttention(block=4).run(llama(layers, dtype)))
    return split_preparation(LayoutWeights(BACKEND.layouts).run(graph))


def grouped(graph: Graph, backend: Backend = BACKEND) -> Graph:
    return verify(GroupKernels(backend.templates).run(graph))


def kernels(graph: Graph) -> list[Node]:
    return [n for n in graph.nodes() if n.op.name == "kernel"]


def ops(node: Node) -> list[str]:
    names = (n.op.name for n in node["body"].nodes())
    silent = ("input", "constant", "slice", "reshape", "concat", "cast", "transpose", "item")
    return [n for n in names if n not in silent]


def test_a_decoder_layer_is_eight_kernels():
    graph = grouped(serving(4).step)
    assert {n.op.name for n in graph.nodes()} <= {"kernel", "item", "reshape", "input", "parameter"}
    layer = kernels(graph)[9:17]  # after the embedding, the rotary tables and layer 0
    assert [(k["template"], ops(k)) for k in layer] == [
        ("rows", ["rms_norm"]),
        ("linear", ["packed_linear"]),
        ("rows", ["mul", "neg", "mul", "add", "mul", "neg", "mul", "add", *["cache_append"] * 2]),
        ("attention", ["paged_attention"]),
        ("linear", ["packed_linear", "add"]),
        ("rows", ["rms_norm"]),
        ("linear", ["packed_linear", "silu", "mul"]),
        ("linear", ["packed_linear", "add"]),
    ]


def test_norms_behind_linears_are_those_of_the_linears_that_alone_read_them():
    step = SelectLogitRows().run(CacheAttention(block=4).run(llama(3)))
    found = kernels(grouped(step, gpu_backend(Target.parse("cuda:sm_90"))))
    linears = [ops(k) for k in found if k["template"] == "linear"]
    # The first norm reads embeddings, which rows look up.
    assert linears[0] == ["linear"] and ops(found[0])[-1] == "rms_norm"
    assert linears[4] == ["rms_norm", "linear"]
    assert linears[2] == ["rms_norm", "linear", "silu", "mul"]
    assert not [k for k in found[3:] if k["template"] == "rows" and "rms_norm" in ops(k)]


def test_a_norm_that_two_read_stays_with_rows():
    text = """graph g(%x: f32[T, 4]) where T in [1, 8] {
  %u = parameter {name = "u", type = f32[4, 4]} : f32[4, 4]
  %a = linear %x %u : f32[T, 4]
  %n = rms_norm %a {eps = 1e-05, offset = 0.0} : f32[T, 4]
  %b = linear %n %u : f32[T, 4]
  %c = mul %b %n : f32[T, 4]
  return %c as c
}
"""
    graph = GroupKernels(gpu_backend(Target.parse("cuda:sm_90")).templates).run(parse_graph(text))
    assert [ops(k) for k in kernels(graph)] == [["linear"], ["rms_norm"], ["linear", "mul"]]


def test_equal_layers_have_equal_kernels():
    few, many = (Counter(k["body"] for k in kernels(grouped(serving(n).step))) for n in (3, 6))
    assert many.keys() == few.keys()
    assert sum(many.values()) - sum(few.values()) == 3 * 8


def test_every_step_gives_the_same_logits():
    step, preparation = serving(2)
    check_paged(llama(2), grouped(step), np.random.default_rng(), VOCAB, preparation)


def test_origins_are_gathered():
    graph = grouped(serving(1).step)
    found = {o for k in kernels(graph) for o in graph.origin(k)}
    assert {"layers.0.mlp (m.py:5)", "lm_head (m.py:9)", "model.embed (m.py:1)"} <= found


def test_grouping_is_the_same_every_time():
    texts = {print_graph(grouped(serving(2).step)) for _ in range(2)}
    assert len(texts) == 1


CROSSED = """graph g(%x: f32[T, 4]) where T in [1, 8] {
  %u = parameter {name = "u", type = f32[4, 4]} : f32[4, 4]
  %v = parameter {name = "v", type = f32[4, 4]} : f32[4, 4]
  %a = linear %x %u : f32[T, 4]
  %b = linear %x %v : f32[T, 4]
  %ca = cumsum %a {axis = 0} : f32[T, 4]
  %cb = cumsum %b {axis = 0} : f32[T, 4]
  %y = mul %a %cb : f32[T, 4]
  %z = mul %b %ca : f32[T, 4]
  return %y as y, %z as z
}
"""
PAIR = """graph g(%x: f32[T, 4]) where T in [1, 8] {
  %u = parameter {name = "u", type = f32[6, 4]} : f32[6, 4]
  %v = parameter {name = "v", type = f32[6, 4]} : f32[6, 4]
  %a = linear %x %u : f32[T, 6]
  %b = linear %x %v : f32[T, 6]
  %g = silu %a : f32[T, 6]
  %y = mul %g %b : f32[T, 6]
  return %y as y
}
"""
USED_TWICE = """graph g(%x: f32[T, 4]) where T in [1, 8] {
  %u = parameter {name = "u", type = f32[4, 4]} : f32[4, 4]
  %a = linear %x %u : f32[T, 4]
  %b = tanh %a : f32[T, 4]
  %c = exp %b : f32[T, 4]
  %d = add %b %c : f32[T, 4]
  %e = neg %d : f32[T, 4]
  return %d as d, %e as e
}
"""
MIXES = """graph g(%x: f32[T, 3, 4]) where T in [1, 8] {
  %a = exp %x : f32[T, 3, 4]
  %m = reduce_max %a {axes = (0,)} : f32[3, 4]
  %b = sub %a %m : f32[T, 3, 4]
  %t = transpose %b {permutation = (1, 0, 2)} : f32[3, T, 4]
  %s = softmax %t {axis = 1} : f32[3, T, 4]
  %k = topk %b {k = 2, axis = 2} : (f32[T, 3, 2], i64[T, 3, 2])
  %v = item %k {index = 0} : f32[T, 3, 2]
  %w = neg %v : f32[T, 3, 2]
  return %s as s, %w as w, %x as same, %a as a, %a as again
}
"""
# a is ready two linears before c, and only what c is needed for reads it.
WAITS = """graph g(%x: f32[T, 4]) where T in [1, 8] {
  %u = parameter {name = "u", type = f32[4, 4]} : f32[4, 4]
  %a = linear %x %u : f32[T, 4]
  %b = linear %a %u : f32[T, 4]
  %c = linear %b %u : f32[T, 4]
  %n = softmax %a {axis = 1} : f32[T, 4]
  %m = softmax %c {axis = 1} : f32[T, 4]
  %s = sub %n %m : f32[T, 4]
  return %s as s
}
"""
# As WAITS, but the later group needs other rows of the earlier one.
WAITS_MIXED = WAITS.replace(
    "%s = sub %n %m : f32[T, 4]",
    "%k = cumsum %n {axis = 0} : f32[T, 4]\n  %s = sub %k %m : f32[T, 4]",
)
# Two linears read what one of them needs later than the other: n cannot wait for m.
NEEDED = """graph g(%x: f32[T, 4]) where T in [1, 8] {
  %u = parameter {name = "u", type = f32[4, 4]} : f32[4, 4]
  %a = linear %x %u : f32[T, 4]
  %n = softmax %a {axis = 1} : f32[T, 4]
  %b = linear %n %u : f32[T, 4]
  %m = softmax %b {axis = 1} : f32[T, 4]
  %s = sub %n %m : f32[T, 4]
  return %s as s
}
"""
# Rows of two values by one index, the first of them ready a linear before.
TAKES = """graph g(%x: f32[T, 4], %r: i32[R]) where R in [1, 8], T in [1, 8] {
  %u = parameter {name = "u", type = f32[4, 4]} : f32[4, 4]
  %a = linear %x %u : f32[T, 4]
  %b = linear %a %u : f32[T, 4]
  %p = take %a %r {axis = 0} : f32[R, 4]
  %q = take %b %r {axis = 0} : f32[R, 4]
  %c = linear %q %u : f32[R, 4]
  %s = add %c %p : f32[R, 4]
  return %s as s
}
"""
# Rows of two linears that nothing but their common reader joins.
PARALLEL = """graph g(%x: f32[T, 4], %y: f32[T, 3]) where T in [1, 8] {
  %u = parameter {name = "u", type = f32[4, 4]} : f32[4, 4]
  %v = parameter {name = "v", type = f32[5, 3]} : f32[5, 3]
  %w = parameter {name = "w", type = f32[2, 9]} : f32[2, 9]
  %a = linear %x %u : f32[T, 4]
  %b = linear %y %v : f32[T, 5]
  %n = softmax %a {axis = 1} : f32[T, 4]
  %m = softmax %b {axis = 1} : f32[T, 5]
  %c = concat %n %m {axis = 1} : f32[T, 9]
  %s = linear %c %w : f32[T, 2]
  return %s as s
}
"""
CASES = {
    "crossed": CROSSED, "pair": PAIR, "used twice": USED_TWICE, "mixes": MIXES, "waits": WAITS,
    "waits, mixed": WAITS_MIXED, "needed": NEEDED, "takes": TAKES, "parallel": PARALLEL,
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_values_are_kept(name: str):
    graph = check_pass(GroupKernels(BACKEND.templates), CASES[name])
    view = nx.DiGraph((i, k) for k in kernels(graph) for i in k.inputs)
    assert nx.is_directed_acyclic_graph(view)


def test_operands_that_would_make_a_cycle_stay_outside():
    """y = a cumsum(b) and z = b cumsum(a): at most one of the products can follow its linear."""
    bodies = [ops(k) for k in kernels(grouped(parse_graph(CROSSED)))]
    assert [b for b in bodies if "linear" in b] == [["linear"], ["linear"]]


def test_a_gate_joins_the_later_of_two_linears():
    bodies = [ops(k) for k in kernels(grouped(parse_graph(PAIR)))]
    assert bodies in (
        [["linear", "silu"], ["linear", "mul"]],
        [["linear"], ["linear", "silu", "mul"]],
    )


def test_an_epilogue_may_branch_inside_and_gives_several_values_where_a_template_does():
    bodies = [ops(k) for k in kernels(grouped(parse_graph(USED_TWICE)))]
    assert bodies == [["linear", "tanh", "exp", "add", "neg"]]
    one = gpu_backend(Target.parse("cuda:sm_90"))
    bodies = [ops(k) for k in kernels(grouped(parse_graph(USED_TWICE), one))]
    assert bodies == [["linear", "tanh", "exp", "add"], ["neg"]]


def test_what_rows_read_the_rows_make():
    """Of several values behind a linear, those that leave are for other kernels than rows."""
    text = """graph g(%x: f32[T, 4]) where T in [1, 8] {
  %u = parameter {name = "u", type = f32[4, 4]} : f32[4, 4]
  %a = linear %x %u : f32[T, 4]
  %b = tanh %a : f32[T, 4]
  %c = exp %a : f32[T, 4]
  %d = linear %c %u : f32[T, 4]
  %s = softmax %b {axis = 1} : f32[T, 4]
  %y = mul %s %a : f32[T, 4]
  return %d as d, %y as y
}
"""
    bodies = [ops(k) for k in kernels(grouped(parse_graph(text)))]
    assert sorted(bodies) == [["linear"], ["linear", "exp"], ["tanh", "softmax", "mul"]]


def test_what_needs_what_rows_make_comes_behind_them():
    """No kernel reads what rows make of its own result."""
    text = """graph g(%x: f32[T, 4]) where T in [1, 8] {
  %u = parameter {name = "u", type = f32[4, 4]} : f32[4, 4]
  %a = linear %x %u : f32[T, 4]
  %b = tanh %a : f32[T, 4]
  %c = exp %b : f32[T, 4]
  %d = linear %c %u : f32[T, 4]
  %s = softmax %b {axis = 1} : f32[T, 4]
  %y = mul %s %a : f32[T, 4]
  return %d as d, %y as y
}
"""
    bodies = [ops(k) for k in kernels(grouped(parse_graph(text)))]
    assert sorted(bodies) == [["linear"], ["linear"], ["tanh", "exp", "softmax", "mul"]]


def test_a_convolution_takes_in_what_follows_its_rows():
    rows = "%x: f32[T, 4], %p: f32[T, 4], %q: i32[N + 1], %f: i32[N], %s: state<f32>[1, 4]"
    text = """
  %u = parameter {name = "u", type = f32[4, 4]} : f32[4, 4]
  %w = parameter {name = "w", type = f32[2, 4]} : f32[2, 4]
  %c = state_conv %x %w %s %q %f %f : (f32[T, 4], state<f32>[1, 4])
  %y = item %c {index = 0} : f32[T, 4]
  %t = item %c {index = 1} : state<f32>[1, 4]
  %a = silu %y : f32[T, 4]
  %b = add %y %p : f32[T, 4]
  %d = linear %a %u : f32[T, 4]
  %e = linear %b %u : f32[T, 4]
  %z = add %d %e : f32[T, 4]
  return %z as z, %t as t
}
"""
    graph = parse_graph(f"graph g({rows}) where N in [1, 2], T in [1, 8] {{{text}")
    bodies = [ops(k) for k in kernels(grouped(graph))]
    assert bodies == [["state_conv", "silu", "add"], ["linear"], ["linear", "add"]]


def test_ops_over_other_rows_have_other_kernels():
    graph = grouped(parse_graph(MIXES))
    together = [ops(k) for k in kernels(graph)]
    assert not any({"exp", "reduce_max"} <= set(b) for b in together)
    assert not any({"sub", "reduce_max"} <= set(b) for b in together)
    assert any({"sub", "topk", "neg"} <= set(b) for b in together)


def test_rows_wait_for_the_only_group_that_reads_them():
    waits, mixed, needed = (
        [ops(k) for k in kernels(grouped(parse_graph(text)))]
        for text in (WAITS, WAITS_MIXED, NEEDED)
    )
    assert ["softmax", "softmax", "sub"] in waits and ["softmax"] not in waits
    assert ["softmax", "cumsum"] not in mixed and ["softmax", "softmax", "sub"] not in mixed
    assert ["softmax"] in needed and ["softmax", "sub"] in needed


def test_rows_wait_for_those_that_read_a_value_in_common():
    assert ["take", "take"] in [ops(k) for k in kernels(grouped(parse_graph(TAKES)))]


def test_rows_of_one_reader_are_one_kernel():
    assert ["softmax", "softmax"] in [ops(k) for k in kernels(grouped(parse_graph(PARALLEL)))]


def test_an_op_without_a_template_is_named_with_its_place():
    text = """graph g(%x: f32[4]) {
  %a = exp %x : f32[4]
  %b = erfinv %a : f32[4]   from odd (m.py:7)
  return %b as b
}
"""
    backend = Backend("small", {"rows": Template(frozenset({"exp", "neg"}))})
    with pytest.raises(IRError, match=r"no template takes erfinv(.|\n)*m\.py:7"):
        grouped(parse_graph(text), backend)
