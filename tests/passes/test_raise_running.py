"""What runs along the tokens, and is no linear recurrence, becomes token_loop."""

from __future__ import annotations

import pytest
from check import check_pass
from ferrule.ir.graph import Graph
from ferrule.ir.text import parse_graph
from ferrule.passes.raise_running import RaiseRunning

BEFORE = """
graph m(%ids: i64[B, S]) where B in [1, 3], S in [1, 9] {
  %0 = parameter {name = "x"} : f32[11, 3]
  %1 = take %0 %ids {axis = 0} : f32[B, S, 3]
  %2 = cummax %1 {axis = 1} : f32[B, S, 3]
  return %2 as y
}
"""
# A parallel scan in logarithms whose first state is a weight's.
FIRST = """
graph m(%ids: i64[B, S]) where B in [1, 3], S in [1, 9] {
  %0 = parameter {name = "x"} : f32[11, 3]
  %1 = take %0 %ids {axis = 0} : f32[B, S, 3]
  %2 = parameter {name = "h"} : f32[1, 1, 3]
  %3 = parameter {name = "a"} : f32[11, 3]
  %4 = take %3 %ids {axis = 0} : f32[B, S, 3]
  %5 = cumsum %4 {axis = 1} : f32[B, S, 3]
  %6 = pad %5 {before = (0, 1, 0), after = (0, 0, 0), value = 0.0} : f32[B, S + 1, 3]
  %7 = broadcast %2 {shape = (B, 1, 3)} : f32[B, 1, 3]
  %8 = concat %7 %1 {axis = 1} : f32[B, S + 1, 3]
  %9 = sub %8 %6 : f32[B, S + 1, 3]
  %10 = logcumsumexp %9 {axis = 1} : f32[B, S + 1, 3]
  %11 = add %10 %6 : f32[B, S + 1, 3]
  %12 = exp %11 : f32[B, S + 1, 3]
  %13 = slice %12 {axis = 1, start = 1, stop = S + 1, step = 1} : f32[B, S, 3]
  return %13 as y
}
"""
TRANSPOSED = """
graph m(%ids: i64[B, S]) where B in [1, 3], S in [1, 9] {
  %0 = parameter {name = "x"} : bf16[11, 3]
  %1 = take %0 %ids {axis = 0} : bf16[B, S, 3]
  %2 = transpose %1 {permutation = (0, 2, 1)} : bf16[B, 3, S]
  %3 = logcumsumexp %2 {axis = 2} : bf16[B, 3, S]
  %4 = transpose %3 {permutation = (0, 2, 1)} : bf16[B, S, 3]
  return %4 as y
}
"""
PASS = RaiseRunning()


def loops(graph: Graph) -> list[int]:
    """How many states each loop of a graph has."""
    return [n["states"] for n in graph.nodes() if n.op.name == "token_loop"]


@pytest.mark.parametrize(
    ("text", "states"),
    [(BEFORE, [1]), (FIRST, [2]), (TRANSPOSED, [1])],
    ids=["largest so far", "a first state", "tokens last"],
)
def test_what_runs_along_the_tokens_becomes_a_loop(text: str, states: list[int]):
    after = check_pass(PASS, text)
    assert loops(after) == states
    assert not {"cumsum", "cummax", "logcumsumexp"} & {n.op.name for n in after.nodes()}


def test_the_step_reads_one_token_and_what_the_one_before_left():
    (loop,) = (n for n in check_pass(PASS, BEFORE).nodes() if n.op.name == "token_loop")
    body: Graph = loop["body"]
    assert [str(i.type) for i in body.inputs] == ["f32[1, 3]", "f32[1, 1, 3]"]
    assert [n.op.name for n in body.nodes() if n.op.has("elementwise")] == ["maximum"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("cummax %1 {axis = 1}", "cummax %1 {axis = 2}"),
        ("cummax %1 {axis = 1}", "flip %1 {axes = (1,)}"),
        ("cummax %1 {axis = 1}", "cummax %1 {axis = 0}"),
    ],
    ids=["along numbers", "runs along nothing", "over the batch"],
)
def test_what_runs_along_no_tokens_is_left(old: str, new: str):
    graph = parse_graph(BEFORE.replace(old, new))
    assert check_pass(PASS, graph) == graph


def test_a_value_of_tokens_before_the_first_is_left():
    graph = parse_graph(
        BEFORE.replace(
            "  %2 = cummax %1 {axis = 1} : f32[B, S, 3]\n  return %2",
            "  %2 = slice %1 {axis = 1, start = 0, stop = 1, step = 1} : f32[B, 1, 3]\n"
            "  %3 = concat %2 %1 {axis = 1} : f32[B, S + 1, 3]\n"
            "  %4 = cummax %3 {axis = 1} : f32[B, S + 1, 3]\n"
            "  %5 = slice %4 {axis = 1, start = 1, stop = S + 1, step = 1} : f32[B, S, 3]\n"
            "  return %5",
        )
    )
    assert check_pass(PASS, graph) == graph
