"""Flattening: whole small graphs keep their values on a batch laid out row after row; errors name
op and place."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from ferrule.ir.errors import IRError
from ferrule.ir.text import parse_graph, print_graph
from ferrule.ir.verify import verify
from ferrule.passes.flatten_tokens import FlattenTokens

HEAD = """graph m(%ids: i64[B, S]) where B in [1, 8], S in [1, 64] {
  %e = parameter {name = "emb", type = f32[50, 12]} : f32[50, 12]
  %x = take %e %ids {axis = 0} : f32[B, S, 12]   from model.embed (m.py:1)
"""
RNG = np.random.default_rng()


def parameter(name: str, *shape: int) -> str:
    """A line for a parameter."""
    text = f"f32[{', '.join(map(str, shape))}]"
    return f'  %{name} = parameter {{name = "{name}", type = {text}}} : {text}\n'


ATTENTION = """  %h = reshape %x {shape = (B, S, 4, 3)} : f32[B, S, 4, 3]
  %q = transpose %h {permutation = (0, 2, 1, 3)} : f32[B, 4, S, 3]
  %k = slice %q {axis = 1, start = 0, stop = 2} : f32[B, 2, S, 3]
  %a = attention %q %k %k {scale = 0.5, causal = true, window = 4} : f32[B, 4, S, 3]
  %at = transpose %a {permutation = (0, 2, 1, 3)} : f32[B, S, 4, 3]
  %o = reshape %at {shape = (B, S, 12)} : f32[B, S, 12]
  return %o as out
}
"""
BATCHED_EXPERTS = (
    parameter("we", 5, 12, 7)
    + """  %f = reshape %x {shape = (1, B*S, 12)} : f32[1, B*S, 12]
  %y = matmul %f %we : f32[5, B*S, 7]
  %s = reduce_sum %y {axes = (0,)} : f32[B*S, 7]
  %o = reshape %s {shape = (B, S, 7)} : f32[B, S, 7]
  return %o as out
}
"""
)
INSIDE_TOKENS = """  %h = reshape %x {shape = (B, S, 4, 3)} : f32[B, S, 4, 3]
  %t = transpose %h {permutation = (0, 1, 3, 2)} : f32[B, S, 3, 4]
  %y = matmul %h %t : f32[B, S, 4, 4]
  %m = reduce_max %y {axes = (2,), keepdims = true} : f32[B, S, 1, 4]
  %n = softmax %m {axis = 3} : f32[B, S, 1, 4]
  %o = reshape %n {shape = (B, S, 4)} : f32[B, S, 4]
  return %o as out
}
"""
CONCAT_PAD = """  %l = slice %x {axis = 2, start = 0, stop = 6} : f32[B, S, 6]
  %r = slice %x {axis = 2, start = 6, stop = 12} : f32[B, S, 6]
  %n = neg %r : f32[B, S, 6]
  %c = concat %n %l {axis = 2} : f32[B, S, 12]
  %p = pad %c {before = (0, 0, 1), after = (0, 0, 2), value = 3.0} : f32[B, S, 15]
  %o = flip %p {axes = (2,)} : f32[B, S, 15]
  return %o as out
}
"""
ROUTING = (
    parameter("wr", 6, 12)
    + """  %f = reshape %x {shape = (B*S, 12)} : f32[B*S, 12]
  %r = linear %f %wr : f32[B*S, 6]
  %tk = topk %r {k = 2, axis = 1} : (f32[B*S, 2], i64[B*S, 2])
  %i = item %tk {index = 1} : i64[B*S, 2]
  %v = item %tk {index = 0} : f32[B*S, 2]
  %c = constant {value = -1.0, dtype = "f32"} : f32[]
  %z = broadcast %c {shape = (B*S, 6)} : f32[B*S, 6]
  %s = scatter %z %i %v {axis = 1} : f32[B*S, 6]
  %g = take_along %s %i {axis = 1} : f32[B*S, 2]
  %j = concat %s %g {axis = 1} : f32[B*S, 8]
  %o = reshape %j {shape = (B, S, 8)} : f32[B, S, 8]
  return %o as out
}
"""
)
CONSTANT_FIRST = (
    parameter("w", 5, 12)
    + """  %t = transpose %x {permutation = (0, 2, 1)} : f32[B, 12, S]
  %y = matmul %w %t : f32[B, 5, S]
  %o = transpose %y {permutation = (0, 2, 1)} : f32[B, S, 5]
  return %o as out
}
"""
)
CONSTANT_OF_HEADS_FIRST = (
    parameter("w", 4, 1, 5, 3)
    + """  %h = reshape %x {shape = (B, S, 4, 3)} : f32[B, S, 4, 3]
  %t = transpose %h {permutation = (2, 0, 3, 1)} : f32[4, B, 3, S]
  %y = matmul %w %t : f32[4, B, 5, S]
  %u = transpose %y {permutation = (1, 3, 0, 2)} : f32[B, S, 4, 5]
  %o = reshape %u {shape = (B, S, 20)} : f32[B, S, 20]
  return %o as out
}
"""
)
CASES = [
    CONSTANT_OF_HEADS_FIRST,
    ATTENTION,
    BATCHED_EXPERTS,
    INSIDE_TOKENS,
    CONCAT_PAD,
    ROUTING,
    CONSTANT_FIRST,
]


@pytest.mark.parametrize("text", CASES)
def test_values_are_those_of_the_rows(text: str, evaluator):
    before = parse_graph(HEAD + text)
    after = verify(FlattenTokens(64, 8).run(before))
    assert parse_graph(print_graph(after)) == after
    named = {str(n["name"]): n.tensor.shape for n in before.parameters()}
    parameters = {k: RNG.random(tuple(map(int, s)), np.float32) - 0.5 for k, s in named.items()}
    ids = RNG.integers(0, 50, (3, 7))
    wanted = evaluator(before, parameters, {"ids": ids})(before.outputs, {"B": 3, "S": 7})[0]
    inputs = {
        "tokens": ids.reshape(-1).astype(np.int32),
        "query_start": np.arange(4, dtype=np.int32) * 7,
    }
    given = evaluator(after, parameters, inputs)(after.outputs, {"T": 21, "N": 3})[0]
    np.testing.assert_allclose(given.reshape(wanted.shape), wanted, rtol=2e-5, atol=1e-5)


def test_attention_to_later_tokens_wants_whole_sequences(evaluator):
    before = parse_graph(HEAD + ATTENTION.replace("causal = true, window = 4", "causal = false"))
    with pytest.raises(IRError, match="attention reads tokens that come later"):
        FlattenTokens(64, 8).run(before)
    after = verify(FlattenTokens(64, 8, whole_sequences=True).run(before))
    table = {"emb": RNG.random((50, 12), np.float32)}
    starts = np.array([0, 1, 6, 9], np.int32)
    tokens = RNG.integers(0, 50, 9).astype(np.int32)
    inputs = {"tokens": tokens, "query_start": starts}
    given = evaluator(after, table, inputs)(after.outputs, {"T": 9, "N": 3})[0]
    for begin, end in itertools.pairwise(starts):
        ids = tokens[None, begin:end].astype(np.int64)
        dims = {"B": 1, "S": int(end - begin)}
        wanted = evaluator(before, table, {"ids": ids})(before.outputs, dims)[0]
        np.testing.assert_allclose(given[begin:end], wanted[0], rtol=2e-5, atol=1e-5)


def test_origins_are_kept():
    after = FlattenTokens().run(parse_graph(HEAD + ATTENTION))
    take = next(n for n in after.nodes() if n.op.name == "take")
    assert after.origin(take) == ("model.embed (m.py:1)",)


MIXERS = [
    ("cumsum %x {axis = 1} : f32[B, S, 12]", "cumsum runs along the tokens"),
    ("flip %x {axes = (1,)} : f32[B, S, 12]", "flip turns the tokens around"),
    ("softmax %x {axis = 0} : f32[B, S, 12]", "softmax runs along the tokens"),
    ("pad %x {before = (0, 1, 0), after = (0, 0, 0)} : f32[B, S + 1, 12]", "pad shifts tokens"),
    ("reduce_sum %x {axes = (1,), keepdims = true} : f32[B, 1, 12]", "reduce_sum runs over"),
    ("slice %x {axis = 1, start = 1, stop = S} : f32[B, S - 1, 12]", "slice runs along the tokens"),
]


@pytest.mark.parametrize(("line", "message"), MIXERS)
def test_ops_that_mix_tokens_are_refused_by_name_and_place(line: str, message: str):
    text = f"{HEAD}  %o = {line}   from model.mixer (m.py:42)\n  return %o as out\n}}\n"
    with pytest.raises(IRError, match=message) as caught:
        FlattenTokens().run(parse_graph(text))
    assert "model.mixer (m.py:42)" in str(caught.value)


def test_attention_that_sees_the_future_is_refused():
    text = ATTENTION.replace("causal = true, window = 4", "window = 4")
    with pytest.raises(IRError, match="tokens that come later"):
        FlattenTokens().run(parse_graph(HEAD + text))


def test_scores_across_tokens_outside_attention_are_refused():
    text = """  %t = transpose %x {permutation = (0, 2, 1)} : f32[B, 12, S]
  %s = matmul %x %t : f32[B, S, S]   from model.attn (m.py:9)
  return %s as out
}
"""
    with pytest.raises(IRError, match=r"multiplies tokens with tokens(.|\n)*m\.py:9"):
        FlattenTokens().run(parse_graph(HEAD + text))
