"""Packed weights: layouts by ordinary nodes, odd sizes, one copy of what the embedding and the head
share.
"""

from __future__ import annotations

import pytest
from check import check_pass
from ferrule.codegen.backend import Layout
from ferrule.ir.errors import IRError
from ferrule.ir.text import parse_graph
from ferrule.passes.layout_weights import LayoutWeights
from ferrule.passes.split_preparation import split_preparation

LAYOUTS = [Layout(16, 1), Layout(16, 2), Layout(4, 3)]
LINEAR = """graph m(%x: f32[T, 7]) where T in [1, 8] {
  %w = parameter {name = "w", type = f32[19, 7]} : f32[19, 7]
  %b = parameter {name = "b", type = f32[19]} : f32[19]
  %y = linear %x %w %b : f32[T, 19]
  return %y as y
}
"""
EXPERTS = """graph m(%x: f32[T, 2, 7], %i: i32[T, 2]) where T in [1, 8] {
  %w = parameter {name = "w", type = f32[5, 18, 7]} : f32[5, 18, 7]
  %b = parameter {name = "b", type = f32[5, 18]} : f32[5, 18]
  %y = expert_linear %x %w %i %b : f32[T, 2, 18]
  return %y as y
}
"""
TIED = """graph m(%tokens: i32[T]) where T in [1, 8] {
  %e = parameter {name = "e", type = f32[21, 7]} : f32[21, 7]
  %x = take %e %tokens {axis = 0} : f32[T, 7]
  %y = linear %x %e : f32[T, 21]
  return %y as y
}
"""


PARTS = """graph m(%x: f32[T, 7]) where T in [1, 8] {
  %w = parameter {name = "w", type = f32[64, 7]} : f32[64, 7]
  %y = linear %x %w : f32[T, 64]
  %a = slice %y {axis = 1, start = 0, stop = 32} : f32[T, 32]
  %b = slice %y {axis = 1, start = 32, stop = 64} : f32[T, 32]
  %c = silu %a : f32[T, 32]
  RESULTS
}
"""
TOGETHER = PARTS.replace("RESULTS", "%d = mul %c %b : f32[T, 32]\n  return %d as d")
APART = PARTS.replace("RESULTS", "return %c as c, %b as b")


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda x: x.word)
@pytest.mark.parametrize(("graph", "sides"), [(TOGETHER, 2), (APART, 1)], ids=["together", "apart"])
def test_columns_that_are_read_together_take_turns(graph: str, sides: int, layout: Layout):
    packed = check_pass(LayoutWeights({"f32": layout}), graph)
    (node,) = (n for n in packed.nodes() if n.op.name == "packed_linear")
    assert node["layout"] == layout.with_sides(sides).word


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda x: x.word)
@pytest.mark.parametrize("graph", [LINEAR, EXPERTS, TIED], ids=["linear", "experts", "tied"])
def test_values_are_the_same_on_odd_sizes(graph: str, layout: Layout):
    ranges = {"i": (0, 5), "tokens": (0, 21)}
    packed = check_pass(LayoutWeights({"f32": layout}), graph, ranges=ranges)
    names = {n.op.name for n in packed.nodes()}
    assert not names & {"linear", "expert_linear"}
    node = next(n for n in packed.nodes() if n.op.name.startswith("packed"))
    assert node["layout"] == layout.word


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda x: x.word)
def test_tied_weights_are_stored_once(layout: Layout):
    step, preparation = split_preparation(LayoutWeights({"f32": layout}).run(parse_graph(TIED)))
    assert preparation.output_names == ("w0.e",)
    assert [n["name"] for n in step.parameters()] == ["w0.e"]


def test_a_weight_that_is_computed_is_left():
    text = (
        "graph m(%x: f32[3, 7], %w: f32[5, 7]) {\n"
        "  %y = linear %x %w : f32[3, 5]\n  return %y as y\n}\n"
    )
    graph = parse_graph(text)
    assert LayoutWeights({"f32": Layout(16, 1)}).run(graph) == graph


def test_a_dtype_without_a_layout_is_refused_by_name():
    with pytest.raises(IRError, match=r"weights of f16, not f32(.|\n)*linear"):
        LayoutWeights({"f16": Layout(16, 1)}).run(parse_graph(LINEAR))
