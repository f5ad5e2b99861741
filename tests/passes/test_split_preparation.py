"""Weight preparation: what is split off, by which names, and that both parts give what the whole
gave.
"""

from __future__ import annotations

import numpy as np
import torch
from ferrule.compiler.reference import evaluate
from ferrule.ir.graph import Graph
from ferrule.ir.text import parse_graph, print_graph
from ferrule.ir.verify import verify
from ferrule.passes.split_preparation import Split, split_preparation

GRAPH = """graph m(%x: f32[T, 6], %i: i32[T]) where T in [1, 8] {
  %w = parameter {name = "a.w", type = f32[5, 6]} : f32[5, 6]
  %b = parameter {name = "a.b", type = f32[5]} : f32[5]
  %two = constant {value = 2.0, dtype = "f32"} : f32[]
  %w2 = mul %w %two : f32[5, 6]
  %y = linear %x %w2 %b : f32[T, 5]
  %n = iota {size = 7, dtype = "f32"} : f32[7]
  %s = sin %n : f32[7]
  %t = take %s %i {axis = 0} : f32[T]
  %r = reshape %t {shape = (T, 1)} : f32[T, 1]
  %o = mul %y %r : f32[T, 5]
  %e = exp %b : f32[5]
  %f = broadcast %e {shape = (3, 5)} : f32[3, 5]
  %g = take %f %i {axis = 0} : f32[T, 5]
  %h = reshape %w {shape = (6, 5)} : f32[6, 5]
  %hh = neg %h : f32[6, 5]
  %hs = slice %hh {axis = 0, start = 0, stop = 3} : f32[3, 5]
  %ha = take %hh %i {axis = 0} : f32[T, 5]
  %hb = take %hs %i {axis = 0} : f32[T, 5]
  %half = constant {value = 0.5, dtype = "f32"} : f32[]
  %p = add %o %half : f32[T, 5]
  return %p as p, %g as g, %ha as ha, %hb as hb
}
"""


def split() -> tuple[Graph, Split]:
    graph = parse_graph(GRAPH)
    found = split_preparation(graph)
    verify(found.step)
    verify(found.preparation)
    return graph, found


def test_names_are_the_place_and_the_first_parameter():
    _, found = split()
    assert found.preparation.output_names == ("w0.a.w", "w1.constant", "w2.a.b", "w3.a.w")
    assert [n["name"] for n in found.step.parameters()] == [
        "w0.a.w", "a.b", "w1.constant", "w2.a.b", "w3.a.w",
    ]  # fmt: skip


def test_broadcasts_views_and_numbers_stay_in_the_step():
    _, found = split()
    text = print_graph(found.step)
    assert "broadcast" in text and "slice" in text and "value = 0.5" in text
    assert not {"sin", "exp", "neg"} & {n.op.name for n in found.step.nodes()}
    assert max(int(np.prod(o.shape)) for o in found.preparation.outputs) == 30


def test_both_parts_give_what_the_whole_gave():
    graph, found = split()
    rng = np.random.default_rng()
    weights = {"a.w": torch.randn(5, 6), "a.b": torch.randn(5)}
    inputs = {
        "x": torch.randn(4, 6),
        "i": torch.from_numpy(rng.integers(0, 3, 4).astype(np.int32)),
    }
    made = {}
    for name, output in zip(found.preparation.output_names, found.preparation.outputs, strict=True):
        # one at a time, as the compiler streams them
        (made[name],) = evaluate(found.preparation.with_outputs([output], (name,)), {}, weights)
    wanted = evaluate(graph, inputs, weights)
    given = evaluate(found.step, inputs, weights | made)
    for a, b in zip(wanted, given, strict=True):
        torch.testing.assert_close(b, a)


def test_a_graph_with_nothing_to_prepare_stays_itself():
    graph = parse_graph(
        'graph m(%x: f32[3]) {\n  %w = parameter {name = "w", type = f32[3]} : f32[3]\n'
        "  %y = add %x %w : f32[3]\n  return %y as y\n}\n"
    )
    found = split_preparation(graph)
    assert found.step == graph and found.preparation.outputs == ()
