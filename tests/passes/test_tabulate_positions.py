"""Position values become tables: rotary, learned, uniform, own rows; what changes with the length
is refused."""

from __future__ import annotations

import numpy as np
import pytest
from ferrule.ir.errors import IRError
from ferrule.ir.graph import Graph
from ferrule.ir.text import parse_graph
from ferrule.passes.analyze_tokens import analyze
from ferrule.passes.tabulate_positions import TabulatePositions

HEAD = """graph m(%ids: i64[B, S]) where B in [1, 8], S in [1, 4096] {
  %e = parameter {name = "emb", type = f32[50, 6]} : f32[50, 6]
  %x = take %e %ids {axis = 0} : f32[B, S, 6]   from model.embed (m.py:1)
  %p = iota {size = S, dtype = "i64"} : i64[S]
"""
RNG = np.random.default_rng()
PARAMETERS = {
    "emb": RNG.standard_normal((50, 6)).astype(np.float32),
    "wpe": RNG.standard_normal((64, 6)).astype(np.float32),
    "inv": np.array([1.0, 0.1, 0.01], np.float32),
}
LEARNED = """  %t = parameter {name = "wpe", type = f32[64, 6]} : f32[64, 6]
  %two = constant {value = 2, dtype = "i64"} : i64[]
  %p2 = add %p %two : i64[S]
  %r = take %t %p2 {axis = 0} : f32[S, 6]
  %o = add %x %r : f32[B, S, 6]
  return %o as out
}
"""
ROTARY = """  %pf = cast %p {dtype = "f32"} : f32[S]
  %pr = reshape %pf {shape = (1, 1, S)} : f32[1, 1, S]
  %i = parameter {name = "inv", type = f32[3]} : f32[3]
  %ir = reshape %i {shape = (1, 3, 1)} : f32[1, 3, 1]
  %f = mul %ir %pr : f32[1, 3, S]
  %fb = broadcast %f {shape = (B, 3, S)} : f32[B, 3, S]
  %c = cos %fb : f32[B, 3, S]
  %xt = transpose %x {permutation = (0, 2, 1)} : f32[B, 6, S]
  %xr = reshape %xt {shape = (B, 2, 3, S)} : f32[B, 2, 3, S]
  %cr = reshape %c {shape = (B, 1, 3, S)} : f32[B, 1, 3, S]
  %o = mul %xr %cr : f32[B, 2, 3, S]
  return %o as out
}
"""
UNIFORM = """  %one = constant {value = 1.0, dtype = "f32"} : f32[]
  %z = broadcast %one {shape = (B*S, 6)} : f32[B*S, 6]
  %xr = reshape %x {shape = (B*S, 6)} : f32[B*S, 6]
  %o = add %xr %z : f32[B*S, 6]
  return %o as out
}
"""
# 1 at every position that short lengths have.
LATE = """  %pf = cast %p {dtype = "f32"} : f32[S]
  %k = constant {value = 24.0, dtype = "f32"} : f32[]
  %d = div %pf %k : f32[S]
  %fl = floor %d : f32[S]
  %one = constant {value = 1.0, dtype = "f32"} : f32[]
  %s = add %fl %one : f32[S]
  %sr = reshape %s {shape = (S, 1)} : f32[S, 1]
  %o = mul %x %sr : f32[B, S, 6]
  return %o as out
}
"""
OWN = """  %n = iota {size = B*S, dtype = "i64"} : i64[B*S]
  %n1 = reshape %n {shape = (B*S, 1)} : i64[B*S, 1]
  %n2 = broadcast %n1 {shape = (B*S, 2)} : i64[B*S, 2]
  %n3 = reshape %n2 {shape = (2*B*S,)} : i64[2*B*S]
  %xr = reshape %x {shape = (B*S, 6)} : f32[B*S, 6]
  %o = take %xr %n3 {axis = 0} : f32[2*B*S, 6]
  return %o as out
}
"""


# A scale that is 1 in the middle of the sequence, where it is in one product with its reciprocal.
MOVING = """  %n = dim_value {dim = S, dtype = "i64"} : i64[]
  %two = constant {value = 2, dtype = "i64"} : i64[]
  %half = floordiv %n %two : i64[]
  %c = sub %p %half : i64[S]
  %cf = cast %c {dtype = "f32"} : f32[S]
  %k = constant {value = 24.0, dtype = "f32"} : f32[]
  %d = div %cf %k : f32[S]
  %up = exp %d : f32[S]
  %u = reshape %up {shape = (S, 1)} : f32[S, 1]
  %a = mul %x %u : f32[B, S, 6]   from model.scale (m.py:7)
  %less = neg %d : f32[S]
  %down = exp %less : f32[S]
  %v = reshape %down {shape = (S, 1)} : f32[S, 1]
"""
BALANCED = (
    MOVING
    + """  %b = mul %x %v : f32[B, S, 6]
  %o = mul %a %b : f32[B, S, 6]
  return %o as out
}
"""
)


def tabulated(text: str, evaluator, max_context: int = 32) -> tuple[Graph, Graph]:
    """The graph before and after."""
    before = parse_graph(HEAD + text)
    return before, TabulatePositions(max_context, evaluator(before, PARAMETERS)).run(before)


@pytest.mark.parametrize("text", [LEARNED, ROTARY, UNIFORM, LATE, OWN, BALANCED])
def test_values_stay_and_nothing_reads_positions_otherwise(text: str, evaluator):
    before, after = tabulated(text, evaluator)
    kinds = analyze(after).kinds
    read = {i for n in after.nodes() if kinds[n] == "token" for i in n.inputs}
    assert all(kinds[n] != "position" or n.op.name in ("broadcast", "reshape") for n in read)
    ids = RNG.integers(0, 50, (3, 29))
    dims = {"B": 3, "S": 29}
    wanted = evaluator(before, PARAMETERS, {"ids": ids})(before.outputs, dims)[0]
    inputs = {"ids": ids, "positions": np.arange(29, dtype=np.int32)}
    given = evaluator(after, PARAMETERS, inputs)(after.outputs, dims)[0]
    np.testing.assert_allclose(given, wanted, rtol=1e-6 if text is not BALANCED else 1e-5)


def test_a_value_that_changes_with_the_length_is_refused(evaluator):
    text = """  %pf = cast %p {dtype = "f32"} : f32[S]
  %s = dim_value {dim = S, dtype = "f32"} : f32[]
  %r = div %pf %s : f32[S]
  %rr = reshape %r {shape = (S, 1)} : f32[S, 1]   from model.scale (m.py:7)
  %o = add %x %rr : f32[B, S, 6]
  return %o as out
}
"""
    with pytest.raises(IRError, match=r"changes with the length(.|\n)*model\.scale \(m\.py:7\)"):
        tabulated(text, evaluator)


def test_a_scale_that_moves_with_the_length_needs_its_reciprocal_beside_it(evaluator):
    alone = MOVING + "  return %a as out\n}\n"
    with pytest.raises(IRError, match=r"changes with the length"):
        tabulated(alone, evaluator)
    with pytest.raises(IRError, match=r"changes with the length"):  # more than can be tried
        tabulated(BALANCED, evaluator, max_context=9000)


def test_the_table_has_max_context_rows(evaluator):
    _, after = tabulated(LEARNED, evaluator, max_context=21)
    tables = [
        n.inputs[0]
        for n in after.nodes()
        if n.op.name == "take" and n.inputs[0].op.name != "parameter"
    ]
    assert [t.shape for t in tables] == [(21, 6)]


def test_a_context_beyond_the_models_own_table_is_refused(evaluator):
    with pytest.raises(IRError, match=r"cannot be had at length 100.*within the model's own"):
        tabulated(LEARNED, evaluator, max_context=100)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(700, 4096, "at length 701; a max_context of 700 keeps them"), (1000, 3000, "at length 3001")],
)
def test_a_value_that_changes_behind_many_tokens_is_refused(
    low: int, high: int, said: str, evaluator
):
    text = (
        HEAD
        + f"""  %n = dim_value {{dim = S, dtype = "i64"}} : i64[]
  %low = constant {{value = {low}, dtype = "i64"}} : i64[]
  %high = constant {{value = {high}, dtype = "i64"}} : i64[]
  %after = gt %n %low : bool[]
  %before = le %n %high : bool[]
  %in = logical_and %after %before : bool[]
  %one = constant {{value = 1.0, dtype = "f32"}} : f32[]
  %two = constant {{value = 2.0, dtype = "f32"}} : f32[]
  %s = where %in %two %one : f32[]
  %o = mul %x %s : f32[B, S, 6]
  return %o as out
}}
"""
    )
    graph = parse_graph(text)
    with pytest.raises(IRError, match=rf"changes with the length.*{said}\n(.|\n)*= where"):
        TabulatePositions(4096, evaluator(graph, PARAMETERS)).run(graph)
