"""The selection template, and attention over what it picks: ties, windows, odd sizes, pages."""

from __future__ import annotations

import pytest
import torch
from ferrule.compiler.reference import evaluate
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node
from ferrule.ir.ops import selection, serving
from kernels import Kernels, T, cache, given, ragged_batch, value_of

N, M = dim("N"), dim("M")
COUNT = 9


def tables() -> tuple[Node, Node, Node]:
    return given("table", "i32", N, M), given("starts", "i32", N + 1), given("lengths", "i32", N)


def picked(dtype: str, heads: int, width: int, block: int, **options: object) -> Graph:
    """A selection of COUNT keys."""
    q, w = given("q", dtype, T, heads, width), given("w", dtype, T, heads)
    keys = cache("keys", dtype, 1, width, block=block)
    y = selection.paged_selected_keys(q, w, keys, *tables(), count=COUNT, **options)
    return Graph("picked", (q, w, keys, *tables()), (y,))


def attended(dtype: str, heads: int, groups: int, width: int, block: int, **options) -> Graph:
    """Attention over selected places."""
    q, places = given("q", dtype, T, heads, width), given("places", "i32", T, COUNT)
    keys, values = (cache(n, dtype, groups, width, block=block) for n in "kv")
    slopes = (given("slopes", "f32", heads),) if options.pop("slopes", False) else ()
    words = (*(("slopes",) if slopes else ()), "selected")
    more = (*slopes, places)
    y = serving.paged_attention(
        q, keys, values, *tables(), *more, scale=0.3, value_size=width, extras=words, **options
    )
    return Graph("attended", (q, keys, values, *tables(), *more), (y,))


PICKED = {
    "plain": picked("f32", 5, 20, 16),
    "window": picked("f32", 8, 16, 5, window=30, activation="", scale=0.5),
    "chunk": picked("bf16", 16, 33, 8, chunk=24),
    "one head": picked("f16", 1, 64, 32),
}
ATTENDED = {
    "heads": attended("f32", 6, 2, 20, 16),
    "latent": attended("bf16", 70, 1, 32, 5),
    "slopes": attended("f32", 3, 3, 16, 8, slopes=True, window=30),
}
BATCHES = (([1, 1, 1], [0, 40, 399]), ([5, 1, 70, 18], [0, 333, 10, 50]), ([130], [0]))


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels("cpu", {**PICKED, **ATTENDED})


def block_of(body: Graph) -> int:
    """Slots of a block in a body's caches of keys."""
    return next(i.type.block for i in body.inputs if i["name"] in ("keys", "k"))


def whole_numbers(shape: tuple[int, ...]) -> torch.Tensor:
    """Small whole numbers: sums are exact in any order, and many are equal."""
    return torch.randint(-2, 3, shape).float()


@pytest.mark.parametrize("name", PICKED)
def test_picks_the_highest_and_of_equals_the_first(kernels: Kernels, name: str) -> None:
    for new, old in BATCHES:
        inputs, dims = ragged_batch(new, old, block_of(PICKED[name]))
        kernels.check(name, inputs | dict.fromkeys(("q", "w", "keys"), whole_numbers), **dims)


@pytest.mark.parametrize("name", ATTENDED)
def test_attention_reads_what_was_selected(kernels: Kernels, name: str) -> None:
    body = ATTENDED[name]
    block = next(i.type.block for i in body.inputs if i["name"] == "k")
    window = next(n["window"] for n in body.nodes() if n.op.name == "paged_attention")
    chooser = picked("f32", 2, 8, block, window=window)
    for new, old in BATCHES:
        inputs, dims = ragged_batch(new, old, block_of(body))
        values = [value_of(i, inputs, dims) for i in chooser.inputs]
        (places,) = evaluate(chooser, values, {}, dims)
        kernels.check(name, inputs | {"places": places}, **dims)


def test_a_count_below_one_is_refused() -> None:
    q, w, keys = given("q", "f32", T, 2, 4), given("w", "f32", T, 2), cache("keys", "f32", 1, 4)
    with pytest.raises(Exception, match="count of 1 or more"):
        selection.paged_selected_keys(q, w, keys, *tables(), count=0)
