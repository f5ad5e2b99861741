"""Loops over tokens whose step is a graph: over batches, and over ragged sequences that go on from
states; odd sizes, states in place and moved, states that nobody reads are NaN.
"""

from __future__ import annotations

import pytest
import torch
from ferrule.codegen.errors import CodegenError
from ferrule.ir.graph import Graph
from ferrule.ir.ops import model
from ferrule.ir.ops import tensor as t
from kernels import Kernels, given
from loop_bodies import BATCHES, BODIES, STATES, dense, values_of


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels("cpu", BODIES)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", [n for n in BODIES if not n.startswith("dense")])
def test_sequences_go_on_from_their_states(kernels: Kernels, name: str, batch):
    counts = batch[0]
    values = values_of(name, batch)
    kernels.check(name, values, T=sum(counts), N=len(counts), C=STATES)


@pytest.mark.parametrize("name", [n for n in BODIES if n.startswith("dense")])
@pytest.mark.parametrize("size", [(1, 1), (3, 17)])
def test_batches_begin_with_what_is_given(kernels: Kernels, name: str, size: tuple[int, int]):
    values = {"u": lambda shape: torch.randn(shape, dtype=torch.float64) / shape[-1] ** 0.5}
    kernels.check(name, values, B=size[0], S=size[1])


def test_a_step_that_attends_is_refused_by_name():
    x, h = given("x", "f32", 1, 2, 4, 8), given("h", "f32", 1, 2, 4, 8)
    y = model.attention(x, h, h, scale=1.0)
    body = Graph("step", (x, h), (t.add(h, x), y))
    with pytest.raises(CodegenError, match="the step of a loop over tokens has attention"):
        Kernels("cpu", {"attends": dense(body, 1)})
