"""Contexts, values that a token makes of all tokens up to it: over batches, and over paged caches;
odd sizes and lengths around blocks.
"""

from __future__ import annotations

import pytest
from context_bodies import BATCHES, BODIES, BOUNDS, L, dense, values_of
from ferrule.codegen.errors import CodegenError
from ferrule.ir.graph import Graph
from ferrule.ir.ops import model
from ferrule.ir.ops import tensor as t
from kernels import Kernels, given


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels("cpu", BODIES)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", [n for n in BODIES if not n.startswith("dense")])
def test_tokens_with_all_before_them(kernels: Kernels, name: str, batch):
    values, dims = values_of(name, batch)
    kernels.check(name, values, **dims)


@pytest.mark.parametrize("name", [n for n in BODIES if n.startswith("dense")])
@pytest.mark.parametrize("size", [(1, 1), (3, 17)])
def test_batches(kernels: Kernels, name: str, size: tuple[int, int]):
    kernels.check(name, B=size[0], S=size[1])


def test_a_body_that_attends_is_refused_by_name():
    q, k = given("q", "f32", 1, 8), given("k", "f32", L, 8)
    keys = t.reshape(k, shape=(1, 1, L, 8))
    y = model.attention(t.reshape(q, shape=(1, 1, 1, 8)), keys, keys, scale=1.0)
    body = Graph("row", (q, k), (t.reshape(y, shape=(1, 8)),), bounds=BOUNDS)
    with pytest.raises(CodegenError, match="makes of its context has attention"):
        Kernels("cpu", {"attends": dense(body, 1, 1)})
