"""Quantized graphs: values near the exact ones, rules by name, shared tables, experts, and what is
left, by name.
"""

from __future__ import annotations

import pytest
import torch
from check import check_pass
from ferrule.codegen.backend import Layout
from ferrule.compiler.reference import evaluate
from ferrule.ir.errors import IRError
from ferrule.ir.graph import Graph
from ferrule.ir.node import input_
from ferrule.ir.text import parse_graph, print_graph
from ferrule.ir.types import TensorType
from ferrule.ir.verify import verify
from ferrule.passes.base import parse_pass
from ferrule.passes.layout_weights import LayoutWeights
from ferrule.passes.quantize import Quantize, Recipe, unquantized
from ferrule.passes.split_preparation import split_preparation
from ferrule.passes.weight_formats import Format

FORMATS = ("int8", "int8-g8", "int4", "int4-g32", "int4-g64", "int8-asym", "int4-g16-asym")
TIED = """graph m(%tokens: i32[T]) where T in [1, 8] {
  %e = parameter {name = "embed", type = f32[21, 77]} : f32[21, 77]
  %w = parameter {name = "out", type = f32[9, 77]} : f32[9, 77]
  %b = parameter {name = "bias", type = f32[9]} : f32[9]
  %x = take %e %tokens {axis = 0} : f32[T, 77]
  %y = linear %x %e : f32[T, 21]
  %z = linear %x %w %b : f32[T, 9]
  return %y as y, %z as z
}
"""


def values(graph: Graph, tokens: torch.Tensor, weights: dict[str, torch.Tensor]):
    return evaluate(verify(graph), {"tokens": tokens}, weights)


def drawn(width: int = 77) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    shapes = {"embed": (21, width), "out": (9, width), "bias": (9,)}
    return torch.randint(0, 21, (5,)).int(), {n: torch.randn(s) for n, s in shapes.items()}


@pytest.mark.parametrize("text", FORMATS)
def test_a_quantized_graph_is_near_the_exact_one_and_packs_without_change(text: str):
    graph = parse_graph(TIED)
    tokens, weights = drawn()
    exact = values(graph, tokens, weights)
    done = Quantize(text).run(graph)
    given = values(done, tokens, weights)
    for a, b in zip(exact, given, strict=True):
        assert float((a - b).norm() / a.norm()) < (0.02 if "8" in text[:4] else 0.25)
    layouts = {"u8": Layout(16, 1), "u4": Layout(16, 2), "f32": Layout(16, 1)}
    packed = LayoutWeights(layouts).run(done)
    assert parse_graph(print_graph(packed)) == packed
    for a, b in zip(given, values(packed, tokens, weights), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)
    assert not {n.op.name for n in packed.nodes()} & {"linear", "quantized_linear"}


@pytest.mark.parametrize("text", FORMATS)
def test_activations_become_integers_where_dots_are(text: str):
    tokens, weights = drawn()
    done = Quantize(text).run(parse_graph(TIED))
    layouts = {"u8": Layout(16, 4), "u4": Layout(16, 4, 2)}
    packed = LayoutWeights(layouts, integer=True).run(done)
    for a, b in zip(values(done, tokens, weights), values(packed, tokens, weights), strict=True):
        assert float((a - b).norm() / a.norm()) < 0.02
    assert any(n.op.name == "packed_integer_linear" for n in packed.nodes())


@pytest.mark.parametrize(("width", "levels"), [(77, 1), (128, 2), (160, 1), (192, 2)])
def test_a_shared_table_is_stored_once(width: int, levels: int):
    layouts = {"u4": Layout(16, 4, 2)}
    graph = parse_graph(TIED.replace("77", str(width)))
    packed = LayoutWeights(layouts, integer=True).run(Quantize("int4").run(graph))
    step, _ = split_preparation(packed)
    stored = [n.dtype for n in step.parameters()]
    # Two weights, each codes, scales of groups or blocks, and multipliers of these; one bias.
    assert sorted(stored) == ["bf16", "bf16", "f32", *["u4"] * (2 * levels)]
    tokens, weights = drawn(width)
    for a, b in zip(values(graph, tokens, weights), values(packed, tokens, weights), strict=True):
        assert float((a - b).norm() / a.norm()) < 0.25


def test_rules_choose_by_name_and_what_is_left_is_listed():
    recipe = Recipe("int8", (("embed*", "none"),))
    done = Quantize(recipe.default, recipe.rules).run(parse_graph(TIED))
    assert [n.op.name for n in done.nodes() if "linear" in n.op.name] == [
        "linear",
        "quantized_linear",
    ]
    (left,) = {line.split(" (")[0] for line in unquantized(done, recipe)}
    assert left == "embed is not quantized: the recipe leaves it"


EXPERTS = """graph m(%x: f32[T, 2, 77], %i: i32[T, 2]) where T in [1, 8] {
  %w = parameter {name = "experts", type = f32[5, 21, 77]} : f32[5, 21, 77]
  %b = parameter {name = "bias", type = f32[5, 21]} : f32[5, 21]
  %y = expert_linear %x %w %i %b : f32[T, 2, 21]
  return %y as y
}
"""


@pytest.mark.parametrize("text", FORMATS)
@pytest.mark.parametrize("integer", [False, True])
def test_weights_of_experts_quantize_and_pack(text: str, integer: bool):
    given = {"x": torch.randn(4, 2, 77), "i": torch.randint(0, 5, (4, 2)).int()}
    weights = {"experts": torch.randn(5, 21, 77), "bias": torch.randn(5, 21)}
    done = Quantize(text).run(parse_graph(EXPERTS))
    assert not unquantized(done, Recipe(text))
    wide = {"u8": Layout(16, 1), "u4": Layout(16, 2)}
    dots = {"u8": Layout(16, 4), "u4": Layout(16, 4, 2)}
    packed = LayoutWeights(dots if integer else wide, integer=integer).run(done)
    assert parse_graph(print_graph(packed)) == packed
    (exact,), (near,), (last,) = (
        evaluate(verify(g), given, weights) for g in (parse_graph(EXPERTS), done, packed)
    )
    assert float((near - exact).norm() / exact.norm()) < (0.02 if "8" in text[:4] else 0.25)
    assert float((last - near).norm() / near.norm()) < (0.02 if integer else 1e-5)


MERGED = """graph m(%x: f32[T, 40]) where T in [1, 8] {
  %q = parameter {name = "q", type = f32[16, 40]} : f32[16, 40]
  %k = parameter {name = "k", type = f32[8, 40]} : f32[8, 40]
  %v = parameter {name = "v", type = f32[8, 40]} : f32[8, 40]
  %b = parameter {name = "bias", type = f32[32]} : f32[32]
  %w = concat %q %k %v {axis = 0} : f32[32, 40]
  %y = linear %x %w %b : f32[T, 32]
  %l = slice %y {axis = 1, start = 0, stop = 24} : f32[T, 24]
  %r = slice %y {axis = 1, start = 24, stop = 32} : f32[T, 8]
  return %l as l, %r as r
}
"""


def test_merged_linears_of_several_formats_come_apart():
    recipe = Recipe("int4", (("v", "int8"),))
    done = Quantize(recipe.default, recipe.rules).run(parse_graph(MERGED))
    linears = [n for n in done.nodes() if n.op.name == "quantized_linear"]
    assert [(n.shape[1], n.inputs[1].dtype) for n in linears] == [(24, "u4"), (8, "u8")]
    assert not unquantized(done, recipe)
    assert [o.op.name for o in done.outputs] == ["quantized_linear"] * 2
    given = {"x": torch.randn(3, 40)}
    weights = {"bias": torch.randn(32)} | {
        n: torch.randn(s, 40) for n, s in (("q", 16), ("k", 8), ("v", 8))
    }
    exact, near = (evaluate(verify(g), given, weights) for g in (parse_graph(MERGED), done))
    for a, b, most in zip(exact, near, (0.25, 0.02), strict=True):
        assert float((a - b).norm() / a.norm()) < most


def test_a_rule_that_matches_nothing_names_the_nearest_parameters():
    with pytest.raises(
        IRError, match=r"no parameter matches .*'embedd\.\*'; the nearest are embed"
    ):
        Quantize("int8", (("embedd.*", "none"),)).run(parse_graph(TIED))


def test_nothing_to_quantize_is_no_change():
    text = """graph m(%x: f32[3, 7], %w: f32[5, 7]) {
  %y = linear %x %w : f32[3, 5]
  return %y as y
}
"""
    check_pass(Quantize(), text, text)
    (left,) = unquantized(parse_graph(text), Recipe())
    assert "its weight is computed at run time" in left


def test_options_are_read_from_text():
    assert parse_pass('quantize{default="int4-g64"}', [Quantize]) == Quantize("int4-g64")


def test_float8_has_a_scale_a_row_and_no_offset():
    form = Format.parse("fp8")
    w = input_(name="w", type=TensorType("bf16", (5, 13)))
    coded = form.quantized(w)
    assert str(form) == "fp8" and form.offset == 0 and coded.zeros is None
    codes, scale = evaluate(Graph("w", (w,), (coded.codes, coded.scale)), [torch.randn(5, 13)])
    assert codes.dtype == torch.float8_e4m3fn and codes.shape == (5, 1, 13)
    assert scale.shape == (5, 1) and float(codes.float().abs().max()) == 448.0
