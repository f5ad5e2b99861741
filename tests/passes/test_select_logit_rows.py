"""Rows that need logits: what runs on them alone, and the values of every step."""

from __future__ import annotations

import numpy as np
import pytest
from ferrule.ir.dims import dim
from ferrule.ir.errors import IRError
from ferrule.ir.graph import Graph
from ferrule.ir.text import parse_graph, print_graph
from ferrule.ir.verify import verify
from ferrule.passes.cache_attention import CacheAttention
from ferrule.passes.select_logit_rows import SelectLogitRows
from llama_graph import VOCAB, llama
from steps import check_paged

R, T = dim("R"), dim("T")
BEFORE = """graph step(%tokens: i32[T], %other: i32[T]) where T in [1, 64] {
  %e = parameter {name = "e", type = f16[30, 8]} : f16[30, 8]
  %w = parameter {name = "w", type = f16[5, 8]} : f16[5, 8]
  %x = take %e %tokens {axis = 0} : f16[T, 8]
  %y = take %e %other {axis = 0} : f16[T, 8]
  %m = cumsum %x {axis = 0} : f16[T, 8]
  %z = add %m %y : f16[T, 8]
  %l = linear %z %w : f16[T, 5]
  return %l as logits, %y as kept
}
"""
AFTER = """graph step(%tokens: i32[T], %other: i32[T], %logit_rows: i32[R])
 where R in [1, 64], T in [1, 64] {
  %e = parameter {name = "e"} : f16[30, 8]
  %x = take %e %tokens {axis = 0} : f16[T, 8]
  %m = cumsum %x {axis = 0} : f16[T, 8]
  %mr = take %m %logit_rows {axis = 0} : f16[R, 8]
  %y = take %e %other {axis = 0} : f16[T, 8]
  %yr = take %y %logit_rows {axis = 0} : f16[R, 8]
  %z = add %mr %yr : f16[R, 8]
  %w = parameter {name = "w"} : f16[5, 8]
  %l = linear %z %w : f16[R, 5]
  %f = cast %l {dtype = "f32"} : f32[R, 5]
  %a = argmax %f {axis = 1, checked = true} : i64[R]
  %i = cast %a {dtype = "i32"} : i32[R]
  return %f as logits, %i as argmax, %y as kept
}
"""


def text(graph: Graph) -> str:
    return print_graph(graph, origins=False)


def test_stops_where_tokens_mix_and_where_another_output_needs_all():
    after = verify(SelectLogitRows().run(parse_graph(BEFORE)))
    assert text(after) == text(parse_graph(AFTER))


def test_the_last_layer_runs_on_the_rows_alone():
    paged = verify(SelectLogitRows().run(CacheAttention(block=4).run(llama(2))))
    attention = [n for n in paged.nodes() if n.op.name == "paged_attention"]
    linears = [n for n in paged.nodes() if n.op.name == "linear"]
    assert [n.shape[0] for n in attention] == [T, T]
    # all of layer 0 and the second qkv, then o, gate_up, down and the head
    assert [n.shape[0] for n in linears] == [T] * 5 + [R] * 4
    assert paged.origin(linears[-1]) == ("lm_head (m.py:9)",)


def test_every_step_gives_the_logits_of_its_rows():
    ragged = llama(2)
    paged = verify(SelectLogitRows().run(CacheAttention(block=4).run(ragged)))
    check_paged(ragged, paged, np.random.default_rng(), VOCAB)


def test_token_axes_are_followed_through_transposes_and_routing():
    """A matmul over heads in front, a topk in the middle: all token-wise."""
    before = """graph step(%x: f32[T, 4, 3]) where T in [1, 64] {
  %w = parameter {name = "w", type = f32[4, 3, 5]} : f32[4, 3, 5]
  %c = cumsum %x {axis = 0} : f32[T, 4, 3]
  %t = transpose %c {permutation = (1, 0, 2)} : f32[4, T, 3]
  %m = matmul %t %w : f32[4, T, 5]
  %b = transpose %m {permutation = (1, 0, 2)} : f32[T, 4, 5]
  %s = reshape %b {shape = (T, 20)} : f32[T, 20]
  %k = topk %s {k = 2, axis = 1} : (f32[T, 2], i64[T, 2])
  %v = item %k {index = 0} : f32[T, 2]
  %one = constant {value = 1.0, dtype = "f32"} : f32[]
  %ones = broadcast %one {shape = (T, 2)} : f32[T, 2]
  %l = add %v %ones : f32[T, 2]
  return %l as logits
}
"""
    after = verify(SelectLogitRows().run(parse_graph(before)))
    gathered = [n for n in after.nodes() if n.op.name == "take"]
    assert [n.inputs[0].op.name for n in gathered] == ["cumsum"]


@pytest.mark.parametrize("shape", ["[T, 3, 2]", "[4, 2]"])
def test_an_output_of_another_shape_is_refused(shape: str):
    graph = f"graph g(%x: f32{shape}) where T in [1, 4] {{\n  return %x as logits\n}}\n"
    with pytest.raises(IRError, match=r"\[T, V\] was wanted"):
        SelectLogitRows().run(parse_graph(graph))
