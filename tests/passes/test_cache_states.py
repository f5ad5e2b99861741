"""Recurrent states: exact values step by step, beside keys and values and without them."""

from __future__ import annotations

import numpy as np
from ferrule.ir.graph import Graph
from ferrule.ir.text import parse_graph, print_graph
from ferrule.ir.types import CacheType
from ferrule.ir.verify import verify
from ferrule.passes.cache_attention import CacheAttention
from ferrule.passes.cache_states import CacheStates
from ferrule.passes.flatten_tokens import FlattenTokens
from ferrule.passes.select_logit_rows import SelectLogitRows
from steps import check_paged

HEAD = """graph m(%ids: i64[B, S]) where B in [1, 8], S in [1, 64] {
  %e = parameter {name = "e", type = f32[31, 12]} : f32[31, 12]
  %x = take %e %ids {axis = 0} : f32[B, S, 12]
  %w = parameter {name = "w", type = f32[12, 3]} : f32[12, 3]
  %c = causal_conv %x %w : f32[B, S, 12]   from model.conv (m.py:3)
  %h = reshape %c {shape = (B, S, 4, 3)} : f32[B, S, 4, 3]
  %q = slice %h {axis = 2, start = 0, stop = 2} : f32[B, S, 2, 3]
  %k0 = slice %h {axis = 2, start = 2, stop = 4} : f32[B, S, 2, 3]
  %k = tanh %k0 : f32[B, S, 2, 3]
"""
SCAN = """  %g0 = abs %h : f32[B, S, 4, 3]
  %g = neg %g0 : f32[B, S, 4, 3]
  %y = linear_scan %q %k %h %g : f32[B, S, 4, 3]
"""
DELTA = """  %g0 = parameter {name = "g", type = f32[4, 1]} : f32[4, 1]
  %g1 = abs %g0 : f32[4, 1]
  %g2 = neg %g1 : f32[4, 1]
  %g = broadcast %g2 {shape = (B, S, 4, 1)} : f32[B, S, 4, 1]
  %b0 = slice %c {axis = 2, start = 0, stop = 4} : f32[B, S, 4]
  %b = sigmoid %b0 : f32[B, S, 4]
  %y = linear_scan %q %k %h %g %b : f32[B, S, 4, 3]
"""
ATTENTION = """  %t = transpose %y {permutation = (0, 2, 1, 3)} : f32[B, 4, S, 3]
  %a = attention %t %t %t {scale = 0.5, causal = true} : f32[B, 4, S, 3]
  %y1 = transpose %a {permutation = (0, 2, 1, 3)} : f32[B, S, 4, 3]
  %o = reshape %y1 {shape = (B, S, 12)} : f32[B, S, 12]
"""
ALONE = "  %o = reshape %y {shape = (B, S, 12)} : f32[B, S, 12]\n"
END = "  %l = tanh %o : f32[B, S, 12]\n  return %l as logits\n}\n"


def served(text: str) -> Graph:
    """The paged graph; all of its rows, and chosen ones, are checked against the ragged one's."""
    ragged = verify(FlattenTokens(max_tokens=64, max_batch=4).run(verify(parse_graph(text))))
    keys = CacheAttention(block=4, max_context=64).run(ragged)
    paged = verify(CacheStates().run(keys))
    for graph in (paged, verify(SelectLogitRows().run(paged))):
        check_paged(ragged, graph, np.random.default_rng(), 31)
    return paged


def states(graph: Graph) -> list[str]:
    found = [i.type for i in graph.inputs if isinstance(i.type, CacheType)]
    return [str(t) for t in found if t.is_state]


def test_a_convolution_and_a_scan_go_on_from_their_states():
    graph = served(HEAD + SCAN + ALONE + END)
    assert states(graph) == ["state<f32>[2, 12]", "state<f32>[4, 3, 3]"]
    conv = next(n for n in graph.nodes() if n.op.name == "state_conv")
    assert graph.origin(conv) == ("model.conv (m.py:3)",)
    names = [i["name"] for i in graph.inputs]
    assert names == ["tokens", "query_start", "state_from", "state_to", "state0", "state1"]


def test_the_delta_rule_with_a_constant_decay_beside_attention():
    graph = served(HEAD + DELTA + ATTENTION + END)
    assert states(graph) == ["state<f32>[2, 12]", "state<f32>[4, 3, 3]"]
    assert "cache<f32>[4; 4, 3]" in print_graph(graph)


def test_rows_of_logits_are_chosen_behind_the_last_scan():
    graph = SelectLogitRows().run(served(HEAD + SCAN + ALONE + END))
    take = next(
        n
        for n in graph.nodes()
        if n.op.name == "take" and "logit_rows" in str([i.attributes.get("name") for i in n.inputs])
    )
    assert take.inputs[0].op.name == "item"


def test_one_tap_needs_no_state_and_a_graph_without_states_stays_as_it_is():
    text = HEAD.replace("12, 3]", "12, 1]") + "  %l = tanh %c : f32[B, S, 12]\n  return %l as l\n}"
    ragged = FlattenTokens().run(verify(parse_graph(text)))
    assert CacheStates().run(ragged) is ragged
