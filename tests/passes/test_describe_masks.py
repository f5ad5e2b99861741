"""Masks by evaluation: each family, sizes beyond what is run, biases, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from ferrule.ir.errors import IRError
from ferrule.ir.text import parse_graph, print_graph
from ferrule.passes.describe_masks import DescribeMasks
from ferrule.passes.recognize_masks import Mask, draw

HEAD = """graph m(%ids: i64[B, S]) where B in [1, 8], S in [1, 99999] {
  %e = parameter {name = "emb", type = f32[100, 32]} : f32[100, 32]
  %x = take %e %ids {axis = 0} : f32[B, S, 32]   from model.embed (m.py:1)
  %h = reshape %x {shape = (B, S, 4, 8)} : f32[B, S, 4, 8]
  %q = transpose %h {permutation = (0, 2, 1, 3)} : f32[B, 4, S, 8]
  %p = iota {size = S, dtype = "i64"} : i64[S]
  %i = reshape %p {shape = (1, 1, S, 1)} : i64[1, 1, S, 1]
  %j = reshape %p {shape = (1, 1, 1, S)} : i64[1, 1, 1, S]
  %c = le %j %i : bool[1, 1, S, S]
"""
TAIL = """  %a = attention %q %q %q %m {scale = 0.5, extras = ("mask",)} : f32[B, 4, S, 8]
  return %a as out
}
"""
CAUSAL = "  %m = bitwise_and %c %c : bool[1, 1, S, S]\n"


def window(size: int) -> str:
    """Causal and less than `size` back."""
    return f"""  %w = constant {{value = {size}, dtype = "i64"}} : i64[]
  %iw = sub %i %w : i64[1, 1, S, 1]
  %cw = gt %j %iw : bool[1, 1, S, S]
  %m = bitwise_and %c %cw : bool[1, 1, S, S]
"""


def both_sides(size: int) -> str:
    """At most `size` away, before or behind."""
    return f"""  %w = constant {{value = {size}, dtype = "i64"}} : i64[]
  %iw = sub %i %w : i64[1, 1, S, 1]
  %after = ge %j %iw : bool[1, 1, S, S]
  %ib = add %i %w : i64[1, 1, S, 1]
  %before = le %j %ib : bool[1, 1, S, S]
  %m = bitwise_and %after %before : bool[1, 1, S, S]
"""


def chunk(size: int) -> str:
    """Causal and in the same chunk."""
    return f"""  %w = constant {{value = {size}, dtype = "i64"}} : i64[]
  %ic = floordiv %i %w : i64[1, 1, S, 1]
  %jc = floordiv %j %w : i64[1, 1, 1, S]
  %cw = eq %ic %jc : bool[1, 1, S, S]
  %m = bitwise_and %c %cw : bool[1, 1, S, S]
"""


ADDITIVE = """  %zero = constant {value = 0.0, dtype = "f32"} : f32[]
  %low = constant {value = -3.4028234663852886e+38, dtype = "f32"} : f32[]
  %m = where %c %zero %low : f32[1, 1, S, S]
"""
ALIBI = """  %s = parameter {name = "slopes", type = f32[4]} : f32[4]
  %s4 = reshape %s {shape = (1, 4, 1, 1)} : f32[1, 4, 1, 1]
  %jf = cast %j {dtype = "f32"} : f32[1, 1, 1, S]
  %b = mul %s4 %jf : f32[1, 4, 1, S]
  %low = constant {value = -inf, dtype = "f32"} : f32[]
  %m = where %c %b %low : f32[1, 4, S, S]
"""
SQUARED = """  %s = parameter {name = "slopes", type = f32[4]} : f32[4]
  %s4 = reshape %s {shape = (1, 4, 1, 1)} : f32[1, 4, 1, 1]
  %d = sub %i %j : i64[1, 1, S, S]
  %df = cast %d {dtype = "f32"} : f32[1, 1, S, S]
  %d2 = mul %df %df : f32[1, 1, S, S]
  %b = mul %s4 %d2 : f32[1, 4, S, S]
  %low = constant {value = -inf, dtype = "f32"} : f32[]
  %m = where %c %b %low : f32[1, 4, S, S]
"""
ODD = """  %two = constant {value = 2, dtype = "i64"} : i64[]
  %zero = constant {value = 0, dtype = "i64"} : i64[]
  %r = mod %j %two : i64[1, 1, 1, S]
  %even = eq %r %zero : bool[1, 1, 1, S]
  %m = bitwise_and %c %even : bool[1, 1, S, S]
"""
SLOPES = {"slopes": -np.array([0.5, 0.25, 0.125, 0.0625], np.float32)}


def described(mask: str, evaluator, max_context: int = 8192):
    """The attention after the pass over a graph with this mask."""
    graph = parse_graph(HEAD + mask + TAIL)
    after = DescribeMasks(max_context, evaluator(graph, SLOPES)).run(graph)
    assert parse_graph(print_graph(after)) == after
    return after.outputs[0], after


@pytest.mark.parametrize(
    ("mask", "window_", "chunk_"),
    [
        (CAUSAL, 0, 0), (ADDITIVE, 0, 0), (window(7), 7, 0), (window(1), 1, 0), (window(79), 79, 0),
        (window(80), 80, 0), (window(4096), 4096, 0), (window(9000), 0, 0), (chunk(5), 0, 5),
        (chunk(512), 0, 512),
    ],
)  # fmt: skip
def test_families(mask: str, window_: int, chunk_: int, evaluator):
    attention, _ = described(mask, evaluator)
    assert (attention["causal"], attention["window"], attention["chunk"]) == (True, window_, chunk_)
    assert attention["extras"] == ()
    assert len(attention.inputs) == 3


@pytest.mark.parametrize(("size", "window_"), [(4, 5), (64, 65), (4096, 4097), (9000, 0)])
def test_windows_to_both_sides(size: int, window_: int, evaluator):
    attention, _ = described(both_sides(size), evaluator)
    assert (attention["causal"], attention["window"], attention["chunk"]) == (False, window_, 0)


BUCKETS = """  %d = sub %i %j : i64[1, 1, S, S]
  %few = constant {value = 3, dtype = "i64"} : i64[]
  %low = constant {value = -3, dtype = "i64"} : i64[]
  %dm = minimum %d %few : i64[1, 1, S, S]
  %dh = maximum %dm %low : i64[1, 1, S, S]
  %at = add %dh %few : i64[1, 1, S, S]
  %flat = reshape %at {shape = (S, S)} : i64[S, S]
  %table = parameter {name = "table", type = f32[4, 7]} : f32[4, 7]
  %m = take %table %flat {axis = 1} : f32[4, S, S]
"""


def test_a_bias_to_both_sides_becomes_a_table_of_distances(evaluator):
    table = np.random.default_rng(5).random((4, 7), np.float32)
    mask = BUCKETS.replace("%m = take", "%b = take") + "  %m = reshape %b {shape = (1, 4, S, S)}"
    mask += " : f32[1, 4, S, S]\n"
    graph = parse_graph(HEAD + mask + TAIL)
    values = {"table": table}
    after = DescribeMasks(90, evaluator(graph, values)).run(graph)
    attention = after.outputs[0]
    assert (attention["extras"], attention["causal"]) == (("distances",), False)
    (found,) = evaluator(after, values)((attention.inputs[3],), {})
    wanted = table[:, np.clip(np.arange(-89, 90), -3, 3) + 3] - table[:, 3:4]
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    with pytest.raises(IRError, match="a bias table over 5000 positions is too large"):
        DescribeMasks(5000, evaluator(graph, values)).run(graph)


def test_linear_bias_becomes_slopes(evaluator):
    attention, after = described(ALIBI, evaluator)
    assert attention["extras"] == ("slopes",)
    slopes = evaluator(after, SLOPES)((attention.inputs[3],), {})[0]
    np.testing.assert_allclose(slopes, SLOPES["slopes"], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_a_linear_bias_in_half_precision_has_slopes_of_float32(dtype: str, evaluator):
    half = ALIBI.replace("%m = where %c %b %low : f32", f"%m = where %c %half %low : {dtype}")
    half = half.replace('dtype = "f32"} : f32[]', f'dtype = "{dtype}"}} : {dtype}[]')
    cast = f'  %half = cast %b {{dtype = "{dtype}"}} : {dtype}[1, 4, 1, S]\n'
    graph = parse_graph(HEAD + half.replace("  %low", cast + "  %low") + TAIL)
    uneven = {"slopes": SLOPES["slopes"] * np.float32(1.3)}
    after = DescribeMasks(8192, evaluator(graph, uneven)).run(graph)
    attention = after.outputs[0]
    assert attention["extras"] == ("slopes",)
    slopes = evaluator(after, uneven)((attention.inputs[3],), {})[0]
    np.testing.assert_allclose(slopes, uneven["slopes"], rtol=1e-6)


def test_other_bias_becomes_a_table_by_distance(evaluator):
    attention, after = described(SQUARED, evaluator, max_context=100)
    assert attention["extras"] == ("bias",)
    table = evaluator(after, SLOPES)((attention.inputs[3],), {})[0]
    wanted = SLOPES["slopes"][:, None] * np.arange(100.0) ** 2
    np.testing.assert_allclose(table, wanted, rtol=1e-5)


def test_unknown_mask_is_drawn_with_its_place(evaluator):
    with pytest.raises(IRError, match=r"no known family(.|\n)*x\.\.(.|\n)*x\.x(.|\n)*attention"):
        described(ODD, evaluator)


def test_mask_that_depends_on_tokens_is_refused(evaluator):
    mask = """  %ir = reshape %ids {shape = (B, 1, 1, S)} : i64[B, 1, 1, S]
  %m = le %ir %i : bool[B, 1, S, S]
"""
    with pytest.raises(IRError, match="depends on the tokens"):
        described(mask, evaluator)


def test_allowed_pairs_of_a_window_inside_a_chunk():
    seen = Mask(window=2, chunk=3).allowed(5)
    assert draw(seen) == "  x....\n  xx...\n  .xx..\n  ...x.\n  ...xx"


def test_a_mask_that_is_a_table_is_read_up_to_its_end(evaluator):
    mask = """  %t = parameter {name = "tril", type = bool[1, 1, 48, 48]} : bool[1, 1, 48, 48]
  %r = slice %t {axis = 2, start = 0, stop = S} : bool[1, 1, S, 48]
  %m = slice %r {axis = 3, start = 0, stop = S} : bool[1, 1, S, S]
"""
    head = HEAD.replace("99999", "48")
    table = {"tril": np.tril(np.ones((48, 48), bool))[None, None]}
    graph = parse_graph(head + mask + TAIL)
    after = DescribeMasks(48, evaluator(graph, table)).run(graph)
    assert after.outputs[0]["causal"] and len(after.outputs[0].inputs) == 3


def sliced(dtype: str, shape: str, size: int) -> str:
    """The corner of a square table."""
    rows, whole = shape.format(n="S", m=size), shape.format(n=size, m=size)
    corner = shape.format(n="S", m="S")
    axis = shape.count(",")
    return f"""  %t = parameter {{name = "table", type = {dtype}{whole}}} : {dtype}{whole}
  %r = slice %t {{axis = {axis - 1}, start = 0, stop = S}} : {dtype}{rows}
  %m = slice %r {{axis = {axis}, start = 0, stop = S}} : {dtype}{corner}
"""


def described_table(mask: str, table: np.ndarray, evaluator):
    """The attention under a mask that is in a table of the model."""
    size = table.shape[-1]
    graph = parse_graph(HEAD.replace("99999", str(size)) + mask + TAIL)
    values = {"table": table}
    after = DescribeMasks(size, evaluator(graph, values)).run(graph)
    return after.outputs[0], evaluator(after, values)


@pytest.mark.parametrize(("window_", "chunk_"), [(300, 0), (0, 400), (0, 333), (80, 0), (0, 0)])
def test_what_begins_behind_many_tokens_of_a_table_is_seen(window_, chunk_, evaluator):
    table = Mask(window=window_, chunk=chunk_).allowed(900)[None, None]
    found, _ = described_table(sliced("bool", "[1, 1, {n}, {m}]", 900), table, evaluator)
    assert (found["causal"], found["window"], found["chunk"]) == (True, window_, chunk_)


def test_a_hole_behind_many_tokens_of_a_table_is_seen(evaluator):
    table = Mask().allowed(900)
    table[:, 300:500] &= (np.arange(900) < 700)[:, None]
    with pytest.raises(IRError, match=r"no known family(.|\n)*others at 900 tokens"):
        described_table(sliced("bool", "[1, 1, {n}, {m}]", 900), table[None, None], evaluator)


def test_a_bias_that_no_longer_grows_is_no_slope(evaluator):
    steps = np.minimum(np.arange(900.0), 400.0)
    distance = np.arange(900)[:, None] - np.arange(900)[None, :]
    slopes = np.array([0.5, 0.25, 0.125, 0.0625])[:, None, None]
    bias = np.where(distance >= 0, -slopes * steps[np.clip(distance, 0, None)], -np.inf)
    table = bias.astype(np.float32)[None]
    found, values = described_table(sliced("f32", "[1, 4, {n}, {m}]", 900), table, evaluator)
    assert found["extras"] == ("bias",)
    (made,) = values((found.inputs[3],), {})
    np.testing.assert_allclose(made, -slopes[:, 0] * steps, rtol=1e-5)


LONGER = """  %few = constant {value = 300, dtype = "i64"} : i64[]
  %half = dim_value {dim = floor(S/2), dtype = "i64"} : i64[]
  %w = maximum %few %half : i64[]
  %iw = sub %i %w : i64[1, 1, S, 1]
  %cw = gt %j %iw : bool[1, 1, S, S]
  %m = bitwise_and %c %cw : bool[1, 1, S, S]
"""


def test_a_window_that_follows_the_length_is_of_no_family(evaluator):
    with pytest.raises(IRError, match="no known family"):
        described(LONGER, evaluator, max_context=900)
    found, _ = described(LONGER, evaluator, max_context=600)
    assert found["window"] == 300


def test_a_window_of_no_whole_number_is_found(evaluator):
    mask = """  %w = constant {value = 299.5, dtype = "f32"} : f32[]
  %d = sub %i %j : i64[1, 1, S, S]
  %df = cast %d {dtype = "f32"} : f32[1, 1, S, S]
  %near = lt %df %w : bool[1, 1, S, S]
  %m = bitwise_and %c %near : bool[1, 1, S, S]
"""
    found, _ = described(mask, evaluator, max_context=5000)
    assert found["window"] == 300
