"""What each value of a captured graph depends on."""

from __future__ import annotations

from ferrule.ir.text import parse_graph
from ferrule.passes.analyze_tokens import analyze

TEXT = """graph m(%ids: i64[B, S]) where B in [1, 8], S in [1, 64] {
  %e = parameter {name = "emb", type = f32[50, 6]} : f32[50, 6]
  %two = constant {value = 2.0, dtype = "f32"} : f32[]
  %e2 = mul %e %two : f32[50, 6]
  %x = take %e2 %ids {axis = 0} : f32[B, S, 6]
  %s = dim_value {dim = S, dtype = "f32"} : f32[]
  %p = iota {size = S, dtype = "i64"} : i64[S]
  %pe = take %e %p {axis = 0} : f32[S, 6]
  %ps = mul %pe %s : f32[S, 6]
  %o = add %x %ps : f32[B, S, 6]
  return %o as out
}
"""


def test_kinds_and_frontier():
    graph = parse_graph(TEXT)
    analysis = analyze(graph)
    kinds = {
        n.op.name: analysis.kinds[n]
        for n in graph.nodes()
        if n.op.name in ("dim_value", "iota", "add")
    }
    assert kinds == {"dim_value": "position", "iota": "position", "add": "token"}
    assert [analysis.kinds[n] for n in graph.nodes() if n.op.name == "mul"] == [
        "constant",
        "position",
    ]
    assert [n.op.name for n in analysis.frontier()] == ["mul"]
    assert [str(n.type) for n in analysis.frontier()] == ["f32[S, 6]"]
