"""Graphs as MLIR: what tracing cannot follow says the same in another form, and machine code that
MLIR makes of a graph has its values.
"""

import ferrule.ir.ops  # noqa: F401 - declares the ops
import pytest
import torch
from ferrule.compiler.build import Options
from ferrule.compiler.errors import CompileError
from ferrule.compiler.export import export_mlir, parse_dims
from ferrule.compiler.mlir.program import GraphModule, program_of
from ferrule.compiler.reference import evaluate
from ferrule.ir.text import parse_graph

pytest.importorskip("torch_mlir", reason="MLIR is an extra")

NORMED = """
graph normed(%x: f32[B, S, 12]) where B in [1, 8], S in [1, 64] {
  %0 = parameter {name = "norm"} : f32[12]
  %1 = rms_norm %x %0 {eps = 1e-06} : f32[B, S, 12]
  %2 = parameter {name = "proj"} : f32[7, 12]
  %3 = linear %1 %2 : f32[B, S, 7]
  %4 = softmax %3 {axis = 2} : f32[B, S, 7]
  %5 = argmax %3 {axis = 2} : i64[B, S]
  return %4 as weights, %5 as best
}
"""
PAGED = """
graph paged(%q: f32[T, 4, 8], %k: f32[T, 2, 8], %kc: cache<f32>[4; 2, 8], %vc: cache<f32>[4; 2, 8], %slots: i32[T], %block_table: i32[N, M], %query_start: i32[N + 1], %context_length: i32[N]) where T in [1, 16], N in [1, 4], M in [1, 4] {
  %0 = cache_append %kc %k %slots : cache<f32>[4; 2, 8]
  %1 = cache_append %vc %k %slots : cache<f32>[4; 2, 8]
  %2 = paged_attention %q %0 %1 %block_table %query_start %context_length {scale = 0.25, value_size = 8 OPTIONS} : f32[T, 4, 8]
  return %2 as y, %0 as kc, %1 as vc
}
"""  # noqa: E501 - a graph's signature is one line
CONV = """
graph conv(%x: f32[B, S, 6], %w: f32[6, 4]) where B in [1, 8], S in [1, 64] {
  %0 = causal_conv %x %w : f32[B, S, 6]
  return %0 as y
}
"""
RAGGED = """
graph ragged(%q: f32[T, 4, 8], %k: f32[T, 2, 8], %v: f32[T, 2, 6], %query_start: i32[N + 1]) where T in [1, 16], N in [1, 4] {
  %0 = ragged_attention %q %k %v %query_start {scale = 0.25, causal = true, window = 3} : f32[T, 4, 6]
  return %0 as y
}
"""  # noqa: E501
SUMS = """
graph sums(%x: f32[B, S, 6], %i: i64[B, S]) where B in [1, 8], S in [1, 64] {
  %0 = cumsum %x {axis = 1} : f32[B, S, 6]
  %1 = cumsum %i {axis = 1} : i64[B, S]
  return %0 as y, %1 as counts
}
"""
GRAPHS = {
    "normed": NORMED, "paged": PAGED.replace(" OPTIONS", ""), "conv": CONV, "ragged": RAGGED,
    "sums": SUMS,
}  # fmt: skip


def paged_inputs():
    """Two sequences of 3 and 2 new tokens behind 4 and 0 old ones, and a token nobody keeps."""
    table = torch.tensor([[5, 1], [3, 0]], dtype=torch.int32)
    slots = torch.tensor([4, 5, 6, 12, -1], dtype=torch.int32)
    return {
        "q": torch.randn(5, 4, 8),
        "k": torch.randn(5, 2, 8),
        "kc": torch.randn(6, 4, 2, 8),
        "vc": torch.randn(6, 4, 2, 8),
        "slots": slots,
        "block_table": table,
        "query_start": torch.tensor([0, 3, 5], dtype=torch.int32),
        "context_length": torch.tensor([7, 2], dtype=torch.int32),
    }


def agree(graph, inputs, parameters=()):
    """The traced form in eager torch, against the reference."""
    values = [*inputs.values(), *dict(parameters).values()]
    wanted = evaluate(graph, inputs, dict(parameters))
    for have, want in zip(GraphModule(graph, {})(*values), wanted, strict=True):
        torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", ["", ", window = 3", ", chunk = 4", ", softcap = 2.0"])
def test_attention_over_pages_traces_to_what_it_means(options):
    agree(parse_graph(PAGED.replace(" OPTIONS", options)), paged_inputs())


def test_ragged_attention_convolutions_and_sums_trace_to_what_they_mean():
    starts = torch.tensor([0, 4, 5, 11], dtype=torch.int32)
    q, k, v = torch.randn(11, 4, 8), torch.randn(11, 2, 8), torch.randn(11, 2, 6)
    agree(parse_graph(RAGGED), {"q": q, "k": k, "v": v, "query_start": starts})
    agree(parse_graph(CONV), {"x": torch.randn(2, 5, 6), "w": torch.randn(6, 4)})
    agree(parse_graph(SUMS), {"x": torch.randn(2, 5, 6), "i": torch.randint(0, 9, (2, 5))})


def test_machine_code_by_mlir_has_the_values_of_the_graph():
    from ferrule.compiler.mlir.running import Runner

    graph = parse_graph(NORMED)
    weights = {"norm": torch.randn(12), "proj": torch.randn(7, 12)}
    run = Runner(program_of(graph, {}))
    for batch, length in ((2, 3), (3, 17)):
        given = {"x": torch.randn(batch, length, 12)}
        best = evaluate(graph, given, weights)
        for have, want in zip(run(given, weights), best, strict=True):
            assert have.dtype == want.dtype
            torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-6)


def test_a_step_with_caches_runs_by_mlir():
    from ferrule.compiler.mlir.running import Runner

    graph, given = parse_graph(PAGED.replace(" OPTIONS", "")), paged_inputs()
    results = Runner(program_of(graph, {}))(given, {})
    for have, want in zip(results, evaluate(graph, given), strict=True):
        torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-5)


def test_text_names_arguments_and_keeps_dims_open(tmp_path):
    file = tmp_path / "normed.ir"
    file.write_text(NORMED)
    text = export_mlir(str(file), "linalg", "caches", {}, Options())
    assert "//   %arg1: parameter norm : f32[12]" in text
    assert "// Results: weights, best" in text
    assert "tensor<?x?x12xf32>" in text
    fixed = export_mlir(str(file), "stablehlo", "caches", {"B": 1, "S": 4}, Options())
    assert "stablehlo." in fixed
    assert "tensor<1x4x12xf32>" in fixed


@pytest.mark.parametrize("name", GRAPHS)
def test_stablehlo_keeps_dims_open(name: str, tmp_path):
    file = tmp_path / f"{name}.ir"
    file.write_text(GRAPHS[name])
    text = export_mlir(str(file), "stablehlo", "caches", {}, Options())
    assert "stablehlo." in text and "torch.aten" not in text
    assert "tensor<?x" in text


def test_what_cannot_be_written_says_why(tmp_path):
    file = tmp_path / "normed.ir"
    file.write_text(NORMED)
    merged = "graph g(%x: f32[B, S, 3]) where B in [1, 8], S in [1, 64] {\n"
    merged += "  %0 = reshape %x {shape = (3*B*S,)} : f32[3*B*S]\n  return %0 as y\n}\n"
    file.with_stem("merged").write_text(merged)
    with pytest.raises(CompileError, match="one dim of several whose sizes are open"):
        export_mlir(str(file.with_stem("merged")), "linalg", "caches", {}, Options())
    with pytest.raises(CompileError, match="no dialect 'llvm'; known: torch, linalg"):
        export_mlir(str(file), "llvm", "caches", {}, Options())
    with pytest.raises(CompileError, match="no dim Q; this graph has B, S"):
        export_mlir(str(file), "torch", "caches", {"Q": 3}, Options())
    with pytest.raises(CompileError, match="dims are given as in S=16,B=1, not 'S'"):
        parse_dims("B=1,S")
    assert parse_dims("S=16, B=1") == {"S": 16, "B": 1}
