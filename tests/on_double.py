"""An artifact whose kernels are interpreted, run by the CUDA runtime over a libcuda that is not
there: everything but the machine code is what a GPU would be asked.
"""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path

from fake_cuda import FakeCuda, FakeProducts, Launched
from ferrule.compiler.interpreted import InterpretedDriver
from ferrule.ir.launches import Binary, Launch, LaunchTable
from ferrule.runtime.artifact import PLAN, WEIGHTS, read_plan
from ferrule.runtime.cuda.device import CudaDevice
from ferrule.runtime.cuda.driver import Given, Prepared
from ferrule.runtime.cuda.executor import CudaExecutor
from ferrule.runtime.cuda.opening import read_launches
from ferrule.runtime.cuda.products import Product
from ferrule.runtime.pools import Pools
from ferrule.runtime.weights import Weights

HIDDEN = 2


class Double:
    """The executor of what was built into a folder without machine code, and its libcuda."""

    def __init__(self, folder: Path, pools: Pools, size: int = 64 << 20) -> None:
        self._driver = InterpretedDriver(folder, size)
        self._start = self._driver.bytes.ctypes.data
        table = read_launches(folder)
        self._launches = {
            launch.binary: (function.source, launch)
            for function in table.functions.values()
            for form in function.forms
            for launch in form.launches
            if launch.product is None
        }
        sizes = {n: _sizes(launch) for n, (_, launch) in self._launches.items()}
        memory = (ctypes.c_char * size).from_address(self._start)
        self.cuda = FakeCuda(sizes, memory=memory, runs=self._run)
        self.products = FakeProducts(self.cuda, self._multiply)
        self.device = CudaDevice(library=self.cuda, products=lambda _: self.products)
        self.executor = CudaExecutor(
            read_plan(folder / PLAN), _with_binaries(table, folder, sizes),
            Weights(folder / WEIGHTS), pools, self.device, folder,
        )  # fmt: skip

    def _run(self, made: Launched) -> None:
        source, launch = self._launches[made.symbol]
        dtypes = [p.dtype for p in launch.pointers] + [""] * len(launch.dims)
        values = zip(made.values[: len(dtypes)], dtypes, strict=True)
        given = tuple(Given(v - self._start if dtype else v, dtype) for v, dtype in values)
        self._driver.interpret(Prepared(source, launch, made.grid, given))

    def _multiply(self, made: Product) -> None:
        places = (made.x, made.w, made.y)
        given = tuple(Given(at - self._start, made.dtype) for at in places)
        self._driver.multiply(given, (made.rows, made.columns, made.depth))

    def close(self) -> None:
        """Give back everything, which leaves nothing of the device."""
        self.executor.close()
        self.device.close()
        assert not (self.cuda.live or self.cuda.locked or self.cuda.allocated), self.cuda.live
        self._driver.close()


def _sizes(launch: Launch) -> list[int]:
    return [8] * len(launch.pointers) + [4] * len(launch.dims) + [8] * HIDDEN


def _with_binaries(table: LaunchTable, folder: Path, names: dict[str, list[int]]) -> LaunchTable:
    made = {n: Binary(f"{n}.bin", n, 128, hidden=HIDDEN) for n in names}
    for binary in made.values():
        (folder / binary.file).write_bytes(b"interpreted")
    return replace(table, binaries=made)
