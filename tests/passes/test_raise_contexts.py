"""What mixes tokens in no known way becomes token_context where it is causal."""

from __future__ import annotations

import pytest
import torch
from check import check_pass
from ferrule.compiler.evaluator import evaluator, part_runner
from ferrule.compiler.reference import evaluate
from ferrule.ir.errors import IRError
from ferrule.ir.graph import Graph
from ferrule.ir.text import parse_graph, print_graph
from ferrule.passes.raise_contexts import RaiseContexts

BEFORE = """
graph m(%ids: i64[B, S]) where B in [1, 3], S in [1, 9] {
  %0 = parameter {name = "q"} : f32[11, 3]
  %1 = take %0 %ids {axis = 0} : f32[B, S, 3]
  %2 = parameter {name = "k"} : f32[11, 3]
  %3 = take %2 %ids {axis = 0} : f32[B, S, 3]
  %4 = transpose %3 {permutation = (0, 2, 1)} : f32[B, 3, S]
  %5 = matmul %1 %4 : f32[B, S, S]
  %6 = sigmoid %5 : f32[B, S, S]
  %7 = iota {size = S, dtype = "i64"} : i64[S]
  %8 = reshape %7 {shape = (S, 1)} : i64[S, 1]
  %9 = le %7 %8 : bool[S, S]
  %10 = constant {value = 0.0, dtype = "f32"} : f32[]
  %11 = where %9 %6 %10 : f32[B, S, S]
  %12 = matmul %11 %3 : f32[B, S, 3]
  return %12 as y
}
"""
MASKED = """
graph m(%ids: i64[B, S]) where B in [1, 3], S in [1, 9] {
  %0 = parameter {name = "x"} : f32[11, 6]
  %1 = take %0 %ids {axis = 0} : f32[B, S, 6]
  %2 = reshape %1 {shape = (B, S, 2, 3)} : f32[B, S, 2, 3]
  %3 = transpose %2 {permutation = (0, 2, 1, 3)} : f32[B, 2, S, 3]
  %4 = iota {size = S, dtype = "i64"} : i64[S]
  %5 = reshape %4 {shape = (S, 1)} : i64[S, 1]
  %6 = sub %5 %4 : i64[S, S]
  %7 = constant {value = 2, dtype = "i64"} : i64[]
  %8 = mod %6 %7 : i64[S, S]
  %9 = constant {value = 0, dtype = "i64"} : i64[]
  %10 = eq %8 %9 : bool[S, S]
  %11 = ge %6 %9 : bool[S, S]
  %12 = logical_and %10 %11 : bool[S, S]
  %13 = attention %3 %3 %3 %12 {scale = 0.5, softcap = 4.0, extras = ("mask",)} : f32[B, 2, S, 3]
  return %13 as y
}
"""
BEHIND_ROWS = """
graph m(%ids: i64[B, S]) where B in [1, 3], S in [1, 9] {
  %0 = parameter {name = "x"} : f32[11, 6]
  %1 = take %0 %ids {axis = 0} : f32[B, S, 6]
  %2 = constant {value = 0.5, dtype = "f32"} : f32[]
  %3 = broadcast %2 {shape = (B, 2, 6)} : f32[B, 2, 6]
  %4 = concat %3 %1 {axis = 1} : f32[B, S + 2, 6]
  %5 = reshape %4 {shape = (B, S + 2, 2, 3)} : f32[B, S + 2, 2, 3]
  %6 = transpose %5 {permutation = (0, 2, 1, 3)} : f32[B, 2, S + 2, 3]
  %7 = attention %6 %6 %6 {scale = 0.5, causal = true} : f32[B, 2, S + 2, 3]
  %8 = slice %7 {axis = 2, start = 2, stop = S + 2} : f32[B, 2, S, 3]
  return %8 as y
}
"""
WINDOWS = """
graph m(%ids: i64[B, S]) where B in [1, 3], S in [4, 9] {
  %0 = parameter {name = "x"} : f32[11, 3]
  %1 = take %0 %ids {axis = 0} : f32[B, S, 3]
  %2 = slice %1 {axis = 1, start = 0, stop = 2*floor(S/2)} : f32[B, 2*floor(S/2), 3]
  %3 = reshape %2 {shape = (B, floor(S/2), 2, 3)} : f32[B, floor(S/2), 2, 3]
  %4 = reduce_sum %3 {axes = (2,)} : f32[B, floor(S/2), 3]
  %5 = transpose %4 {permutation = (0, 2, 1)} : f32[B, 3, floor(S/2)]
  %6 = matmul %1 %5 : f32[B, S, floor(S/2)]
  %7 = iota {size = floor(S/2), dtype = "i64"} : i64[floor(S/2)]
  %8 = iota {size = S, dtype = "i64"} : i64[S]
  %9 = constant {value = 1, dtype = "i64"} : i64[]
  %10 = add %8 %9 : i64[S]
  %11 = constant {value = 2, dtype = "i64"} : i64[]
  %12 = floordiv %10 %11 : i64[S]
  %13 = reshape %12 {shape = (S, 1)} : i64[S, 1]
  %14 = lt %7 %13 : bool[S, floor(S/2)]
  %15 = constant {value = 0.0, dtype = "f32"} : f32[]
  %16 = where %14 %6 %15 : f32[B, S, floor(S/2)]
  %17 = constant {value = -10000.0, dtype = "f32"} : f32[]
  %18 = where %14 %6 %17 : f32[B, S, floor(S/2)]
  %19 = topk %18 {k = K, axis = 2} : (f32[B, S, K], i64[B, S, K])
  %20 = item %19 {index = 1} : i64[B, S, K]
  %21 = broadcast %15 {shape = (B, S, K)} : f32[B, S, K]
  %22 = scatter %16 %20 %21 {axis = 2} : f32[B, S, floor(S/2)]
  %23 = matmul %22 %4 : f32[B, S, 3]
  return %23 as y
}
"""
WINDOWS = WINDOWS.replace("K", "Min(2, floor(S/2))")
BLOCKS = """
graph m(%ids: i64[B, S]) where B in [1, 3], S in [1, 90] {
  %0 = parameter {name = "x"} : f32[11, 3]
  %1 = take %0 %ids {axis = 0} : f32[B, S, 3]
  %2 = pad %1 {before = (0, 0, 0), after = (0, 4*N - S, 0), value = 0.0} : f32[B, 4*N, 3]
  %3 = reshape %2 {shape = (B, N, 12)} : f32[B, N, 12]
  %4 = constant {value = 0.5, dtype = "f32"} : f32[]
  %5 = broadcast %4 {shape = (12, 2)} : f32[12, 2]
  %6 = causal_conv %3 %5 : f32[B, N, 12]
  %7 = sigmoid %6 : f32[B, N, 12]
  %8 = reshape %7 {shape = (B, 4*N, 3)} : f32[B, 4*N, 3]
  %9 = slice %8 {axis = 1, start = 0, stop = S} : f32[B, S, 3]
  return %9 as y
}
"""
BLOCKS = BLOCKS.replace("N", "floor(S/4 + 3/4)")
PASS = RaiseContexts(part_runner({}), 64, evaluator({}))


def names(graph: Graph) -> list[str]:
    return [n.op.name for n in graph.nodes()]


@pytest.mark.parametrize("text", [BEFORE, MASKED], ids=["another function", "a mask with holes"])
def test_a_causal_region_becomes_its_last_row(text: str):
    after = check_pass(PASS, text)
    assert names(after).count("token_context") == 1
    assert not {"matmul", "attention"} & set(names(after))
    (made,) = (n for n in after.nodes() if n.op.name == "token_context")
    # Queries are read of the token alone, keys and values of all up to it.
    assert (made["own"], made["seen"]) == (1, 1)


def test_sizes_that_hold_from_some_length_on_hold_for_fewer_tokens():
    """The last token stands for those behind it, which no token's own value depends on."""
    after = check_pass(PASS, WINDOWS)
    (made,) = (n for n in after.nodes() if n.op.name == "token_context")
    assert made["seen"] == 1 and "Max(4, L)" in str(print_graph(made["body"]))
    values = {"x": torch.randn(11, 3, generator=torch.Generator().manual_seed(0))}
    ids = torch.tensor([[7, 3, 9, 2, 5]])
    (wanted,) = evaluate(parse_graph(WINDOWS), [ids], values, wide=True)
    for length in range(1, 6):
        (given,) = evaluate(after, [ids[:, :length]], values, wide=True)
        torch.testing.assert_close(given, wanted[:, :length])


def test_attention_behind_rows_of_the_model_is_spelled_out():
    """Kernels of a body have no attention: the last row of it is scores and a sum of values."""
    after = check_pass(PASS, BEHIND_ROWS)
    (made,) = (n for n in after.nodes() if n.op.name == "token_context")
    assert "attention" not in names(after) + names(made["body"])


def test_a_convolution_over_blocks_of_tokens_is_spelled_out():
    """Kernels of a body have no convolutions."""
    after = check_pass(PASS, BLOCKS)
    (made,) = (n for n in after.nodes() if n.op.name == "token_context")
    assert "causal_conv" not in names(after) + names(made["body"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("le %7 %8", "ge %7 %8"),
        ("where %9 %6 %10", "where %9 %6 %6"),
        ("%12 = matmul %11 %3 : f32[B, S, 3]", "%12 = mul %1 %3 : f32[B, S, 3]"),
    ],
    ids=["reads later tokens", "reads all tokens", "mixes no tokens"],
)
def test_what_is_not_causal_is_left(old: str, new: str):
    graph = parse_graph(BEFORE.replace(old, new))
    assert check_pass(PASS, graph) == graph


def test_a_mask_that_is_not_causal_is_drawn():
    with pytest.raises(IRError, match=r"no known family:\n  x\.x\.x\.x[\s\S]*whatever"):
        PASS.run(parse_graph(MASKED.replace("ge %6 %9", "eq %8 %9")))


LATE = """  %13 = dim_value {dim = S, dtype = "i64"} : i64[]
  %14 = constant {value = 600, dtype = "i64"} : i64[]
  %15 = gt %13 %14 : bool[]
  %16 = constant {value = 2.0, dtype = "f32"} : f32[]
  %17 = constant {value = 1.0, dtype = "f32"} : f32[]
  %18 = where %15 %16 %17 : f32[]
  %19 = mul %6 %18 : f32[B, S, S]
  %11 = where %9 %19 %10 : f32[B, S, S]
"""


@pytest.mark.parametrize(("most", "is_raised"), [(600, True), (900, False)])
def test_what_follows_the_length_behind_many_tokens_is_left(most: int, is_raised: bool):
    whole = BEFORE.replace("[1, 9]", f"[1, {most}]")
    graph = parse_graph(whole.replace("  %11 = where %9 %6 %10 : f32[B, S, S]\n", LATE))
    after = RaiseContexts(part_runner({}), most, evaluator({})).run(graph)
    assert any(n.op.name == "token_context" for n in after.nodes()) == is_raised
