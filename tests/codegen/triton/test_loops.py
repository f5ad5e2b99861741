"""Loops over tokens and contexts on a GPU: values through the interpreter, and every body compiled
for GPUs that are not there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import context_bodies as contexts
import loop_bodies as loops
import pytest
import torch
from ferrule.codegen.backend import KernelBody
from ferrule.codegen.errors import CodegenError
from ferrule.codegen.triton.build import build_kernels
from ferrule.codegen.triton.lower import lower
from ferrule.ir.graph import Graph
from ferrule.ir.launches import LAUNCHES, LaunchTable
from ferrule.ir.ops import model
from ferrule.ir.ops import tensor as t
from ferrule.ir.target import Target
from interpreted_kernels import Interpreted
from kernels import given

BOUNDS = {"T": (1, 64), "N": (1, 8), "M": (1, 16), "B": (1, 4), "S": (1, 32)}


def bounded(bodies: dict[str, Graph]) -> dict[str, Graph]:
    """Bodies by names that functions may have, within bounds."""
    return {n.replace(" ", "_"): replace(b, bounds=BOUNDS) for n, b in bodies.items()}


LOOPS, CONTEXTS = bounded(loops.BODIES), bounded(contexts.BODIES)
SPARSE = {"u": lambda shape: torch.randn(shape, dtype=torch.float64) / shape[-1] ** 0.5}


@pytest.fixture(scope="module")
def kernels() -> Iterator[Interpreted]:
    made = Interpreted(LOOPS | CONTEXTS)
    yield made
    made.close()


@pytest.mark.parametrize("name", [n for n in LOOPS if not n.startswith("dense")])
def test_sequences_go_on_from_their_states(kernels: Interpreted, name: str):
    for batch in loops.BATCHES:
        values = loops.values_of(name.replace("_", " "), batch)
        kernels.check(name, values, T=sum(batch[0]), N=len(batch[0]), C=loops.STATES)


@pytest.mark.parametrize("name", [n for n in CONTEXTS if not n.startswith("dense")])
def test_tokens_with_all_before_them(kernels: Interpreted, name: str):
    for batch in contexts.BATCHES:
        values, dims = contexts.values_of(name.replace("_", " "), batch)
        kernels.check(name, values, **dims)


@pytest.mark.parametrize("name", [n for n in LOOPS | CONTEXTS if n.startswith("dense")])
@pytest.mark.parametrize("size", [(1, 1), (3, 17)])
def test_batches(kernels: Interpreted, name: str, size: tuple[int, int]):
    kernels.check(name, SPARSE, B=size[0], S=size[1])


@pytest.mark.parametrize("target", ["cuda:sm_80", "cuda:sm_90", "rocm:gfx942"])
def test_loops_and_contexts_are_compiled(target: str, tmp_path: Path):
    """With a step of 1024 by 1024, whose weights no program holds."""
    wide = {"wide": loops.going_on(loops.elman(1024, "bf16"), (1024,), 1)}
    made = {**bounded(wide), **{n: (LOOPS | CONTEXTS)[n] for n in ("memory", "sigmoid_bf16")}}
    build_kernels({n: KernelBody(b) for n, b in made.items()}, Target.parse(target), tmp_path)
    table = LaunchTable.from_json((tmp_path / LAUNCHES).read_bytes())
    assert len(table.binaries) == 3
    assert all(0 < b.registers <= 128 and b.spilled <= 8 for b in table.binaries.values())
    # Two copies of the states of eight sequences at most.
    assert table.scratch_bytes >= 2 * 8 * 1024 * 4


def test_a_step_that_attends_is_refused_by_name():
    x, h = given("x", "f32", 1, 2, 4, 8), given("h", "f32", 1, 2, 4, 8)
    y = model.attention(x, h, h, scale=1.0)
    body = replace(loops.dense(Graph("step", (x, h), (t.add(h, x), y)), 1), bounds=BOUNDS)
    with pytest.raises(CodegenError, match="the step of a loop over tokens has attention"):
        lower("attends", body, Target.parse("cuda:sm_90"))
