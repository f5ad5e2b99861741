"""Reference values of the selection ops, and the passes from whole sequences to pages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ferrule.compiler.reference import evaluate
from ferrule.ir.dims import dim
from ferrule.ir.errors import IRError
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node, input_, parameter
from ferrule.ir.ops import model, selection
from ferrule.ir.ops import tensor as t
from ferrule.ir.types import TensorType
from ferrule.passes.cache_attention import CacheAttention
from ferrule.passes.flatten_tokens import FlattenTokens
from steps import check_paged

B, S = dim("B"), dim("S")
WORDS = 50_000  # a word that comes twice in a sequence has two keys of one score, but for rounding


def given(name: str, *shape: int) -> Node:
    return input_(name=name, type=TensorType("f32", shape))


def test_the_highest_in_their_order_and_of_equals_the_first() -> None:
    q, k, w = given("q", 1, 4, 2, 1), given("k", 1, 4, 1), given("w", 1, 4, 2)
    chosen = selection.selected_keys(q, k, w, count=2, causal=True, activation="relu")
    values = (
        torch.tensor([1.0, -1.0]).expand(1, 4, 2)[..., None],
        torch.tensor([1.0, -3.0, 1.0, -2.0]).reshape(1, 4, 1),
        torch.ones(1, 4, 2),
    )
    # Scores by key: 1, 3, 1, 2.
    found = evaluate(Graph("m", (q, k, w), (chosen,)), list(values))[0]
    assert found.tolist() == [[[0, -1], [0, 1], [0, 1], [1, 3]]]


def test_attention_sees_what_is_selected_of_what_is_visible() -> None:
    q, k, v = (given(n, 1, 1, 3, 2) for n in "qkv")
    places = input_(name="places", type=TensorType("i32", (1, 3, 2)))
    extras = ("selected",)
    y = model.attention(q, k, v, places, scale=1.0, causal=True, extras=extras)
    x = torch.zeros(1, 1, 3, 2)
    values = torch.arange(6.0).reshape(1, 1, 3, 2)
    named = torch.tensor([[[0, -1], [0, 2], [0, 2]]], dtype=torch.int32)
    found = evaluate(Graph("m", (q, k, v, places), (y,)), [x, x, values, named])[0]
    assert found[0, 0].tolist() == [[0, 1], [0, 1], [2, 3]]


def test_places_that_are_not_told_for_each_query_are_refused() -> None:
    q, k, v = (given(n, 1, 1, 3, 2) for n in "qkv")
    places = input_(name="places", type=TensorType("i32", (1, 2, 2)))
    with pytest.raises(IRError, match="places i32"):
        model.attention(q, k, v, places, scale=1.0, extras=("selected",))


def weight(name: str, *shape: int) -> Node:
    return parameter(name=name, type=TensorType("f64", shape))


def language_model(window: int) -> Graph:
    """Two layers that attend to what the first one's indexer picks."""
    ids = input_(name="ids", type=TensorType("i64", (B, S)))
    x = t.take(weight("words", WORDS, 8), ids, axis=0)

    def rows(name: str, n: int) -> Node:
        return model.linear(x, weight(name, n, 8))

    iq = t.reshape(rows("iq", 12), shape=(B, S, 3, 4))
    seen = {"causal": True, "window": window}
    chosen = selection.selected_keys(iq, rows("ik", 4), rows("iw", 3), count=3, **seen)
    for layer in range(2):
        parts = (t.reshape(rows(f"{p}{layer}", 8), shape=(B, S, 2, 4)) for p in "qkv")
        q, k, v = (t.transpose(p, permutation=(0, 2, 1, 3)) for p in parts)
        y = model.attention(q, k, v, chosen, scale=0.5, extras=("selected",), **seen)
        flat = t.reshape(t.transpose(y, permutation=(0, 2, 1, 3)), shape=(B, S, 8))
        x = t.add(x, flat)
    logits = model.linear(x, weight("head", 17, 8))
    return Graph("m", (ids,), (logits,), ("logits",), bounds={"B": (1, 4), "S": (1, 32)})


@pytest.mark.parametrize("window", [0, 9])
def test_selections_over_pages_are_those_over_whole_sequences(window: int) -> None:
    ragged = FlattenTokens(max_tokens=64, max_batch=8).run(language_model(window))
    paged = CacheAttention(block=4, max_context=32).run(ragged)
    kinds = [i.type for i in paged.inputs if i["name"].startswith("cache")]
    # The indexer's keys once, though two layers read what it picks.
    assert sorted(str(k.entry) for k in kinds) == ["(1, 4)"] + ["(2, 4)"] * 4
    check_paged(ragged, paged, np.random.default_rng(), WORDS)


def test_the_indexers_keys_stay_floats_beside_codes() -> None:
    ragged = FlattenTokens().run(language_model(0))
    paged = CacheAttention(block=4, max_context=32, dtype="i8").run(ragged)
    kinds = {i["name"]: i.type for i in paged.inputs if i["name"].startswith("cache")}
    assert [str(k.dtype) for k in kinds.values() if k.entry == (1, 4)] == ["f64"]
