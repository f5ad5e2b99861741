"""Workers that a library brings along: regions on any number of them, in turn, asleep, ended."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from ferrule.codegen.backend import KernelBody
from ferrule.codegen.tvm import build_library
from ferrule.ir.graph import Graph
from ferrule.ir.ops import tensor as t
from ferrule.ir.target import Target
from ferrule.runtime.library import KernelLibrary
from ferrule.runtime.tensors import allocate, to_tensor
from kernels import T, given

WIDTH = 512


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with one kernel, whose rows go to all threads from about 40 on."""
    x = given("x", "f32", T, WIDTH)
    body = Graph("exp", (x,), (t.exp(t.mul(x, x)),))
    made = tmp_path_factory.mktemp("workers") / "kernels.so"
    build_library({"k": KernelBody(body)}, Target.parse("cpu:x86-64-v3"), made)
    return made


def check(library: KernelLibrary, rows: int) -> None:
    """Fresh numbers through the kernel, every element against numpy's."""
    x, y = allocate("f32", (rows, WIDTH)), allocate("f32", (rows, WIDTH))
    x[:] = np.random.default_rng().uniform(-1, 1, x.shape)
    y[:] = np.nan
    library["k"](to_tensor(x), to_tensor(y))
    np.testing.assert_allclose(y, np.exp(x * x), rtol=1e-5)


def threads() -> int:
    """How many threads this process has."""
    return len(os.listdir("/proc/self/task"))


def test_any_number_of_workers_computes_the_same(path: Path) -> None:
    library = KernelLibrary(path)
    library.enter_thread()
    assert library._workers is not None
    for count in (1, 2, 5, 3, 1, 4):  # more than cores: those who wait must sleep
        library._workers.hire(count)
        for rows in (1, 3, 64, 1001):
            check(library, rows)


def test_many_regions_one_after_another_and_after_sleep(path: Path) -> None:
    library = KernelLibrary(path)
    library.enter_thread()
    assert library._workers is not None
    library._workers.hire(3)
    for turn in range(300):
        check(library, 100 + turn % 7)
        if turn % 50 == 0:
            time.sleep(0.05)  # longer than workers spin


def test_who_waits_sleeps(path: Path) -> None:
    library = KernelLibrary(path)
    library.enter_thread()
    assert library._workers is not None
    library._workers.hire(3)
    check(library, 500)
    time.sleep(0.1)
    begin = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - begin < 0.05


def test_each_thread_has_its_own_and_they_end_with_it(path: Path) -> None:
    before = threads()
    faults: list[BaseException] = []

    def work() -> None:
        try:
            library = KernelLibrary(path)
            library.enter_thread()
            assert library._workers is not None
            library._workers.hire(4)
            for rows in (700, 70, 7):
                check(library, rows)
        except BaseException as error:
            faults.append(error)

    together = [threading.Thread(target=work) for _ in range(3)]
    for one in together:
        one.start()
    for one in together:
        one.join()
    assert not faults, faults
    deadline = time.perf_counter() + 10
    while threads() > before and time.perf_counter() < deadline:
        time.sleep(0.05)
    assert threads() <= before
