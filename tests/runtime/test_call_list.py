"""Calls that a library makes itself: in order, up to the first that fails, whose error is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ferrule.ir.plan import Call
from ferrule.runtime.binding import Bound, run_bound, run_timed
from ferrule.runtime.errors import StepError
from ferrule.runtime.library import KernelLibrary
from ferrule.runtime.tensors import allocate, to_tensor

pytest.importorskip("tvm", reason="building kernels needs TVM's compiler")
from ferrule.codegen.backend import KernelBody
from ferrule.codegen.tvm import build_library
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.node import input_
from ferrule.ir.ops import tensor as t
from ferrule.ir.target import Target
from ferrule.ir.types import TensorType


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> KernelLibrary:
    x = input_(name="x", type=TensorType("f32", (dim("T"), 5)))
    bodies = {
        "double": Graph("double", (x,), (t.add(x, x),)),
        "square": Graph("square", (x,), (t.mul(x, x),)),
    }
    path: Path = tmp_path_factory.mktemp("calls") / "kernels.so"
    build_library({n: KernelBody(g) for n, g in bodies.items()}, Target.parse("cpu"), path)
    return KernelLibrary(path)


def bound(library: KernelLibrary, *calls: tuple[str, tuple[np.ndarray, ...]]) -> Bound:
    made = tuple(
        (library[name], tuple(to_tensor(a) for a in arrays), Call(name, (), "toy.py:1", name))
        for name, arrays in calls
    )
    return Bound(made, library.call_list([(k, tensors) for k, tensors, _ in made]))


def memory() -> list[np.ndarray]:
    arrays = [allocate("f32", (7, 5)) for _ in range(4)]
    for array in arrays[1:]:
        array[:] = np.nan
    arrays[0][:] = np.random.default_rng().standard_normal((7, 5))
    return arrays


@pytest.mark.parametrize("run", [run_bound, run_timed])
def test_each_call_reads_what_the_one_before_wrote(library: KernelLibrary, run):
    x, a, b, c = memory()
    calls = bound(library, ("double", (x, a)), ("square", (a, b)), ("double", (b, c)))
    assert calls.together is not None
    library.enter_thread()
    for _ in range(3):
        c[:] = np.nan
        run(calls)
        assert np.array_equal(c, 8 * x * x)


def test_nothing_to_call(library: KernelLibrary):
    run_bound(bound(library))


@pytest.mark.parametrize("run", [run_bound, run_timed])
def test_a_call_that_fails_is_named_and_ends_them(library: KernelLibrary, run):
    x, a, b, c = memory()
    calls = bound(
        library, ("double", (x, a)), ("square", (a, allocate("f32", (7, 4)))), ("double", (a, c))
    )
    library.enter_thread()
    for _ in range(2):
        with pytest.raises(StepError, match=r"kernel 'square' .*toy.py:1 failed: Mismatched y0"):
            run(calls)
        assert np.array_equal(a, 2 * x)
        assert np.isnan(c).all()
    run(bound(library, ("square", (x, b))))
    assert np.array_equal(b, x * x)
