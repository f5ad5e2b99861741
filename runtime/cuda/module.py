"""Runs a module that is no language model on a GPU: named arrays in, new arrays out."""

from collections.abc import Mapping
from pathlib import Path
from threading import Lock

import numpy as np

from ...ir.launches import LaunchTable
from ...ir.plan import Plan, PlanError, TensorSpec, evaluate_shape
from ..executor import as_stored, module_dims
from ..pools import Pools
from ..tensors import STORAGE, Array, storage_shape
from ..weights import Weights
from .binding import Binding
from .driver import Driver
from .memory import Arena, weight_parts


class CudaModule:
    """A compiled module on a device: everything lies in one arena, weights from the start."""

    def __init__(
        self,
        plan: Plan,
        table: LaunchTable,
        weights: Weights | Mapping[str, Array],
        driver: Driver,
        folder: Path | None = None,
        entry: str = "main",
    ) -> None:
        if entry not in plan.entries:
            raise PlanError(f"no entry {entry!r}; the plan has {', '.join(plan.entries)}")
        self.inputs: tuple[TensorSpec, ...] = plan.entries[entry].signature("input")
        self.results: tuple[TensorSpec, ...] = plan.entries[entry].signature("result")
        self.driver, self._plan, self._entry = driver, plan, entry
        self._arena = Arena.of(plan, table, Pools(0, 0))
        self._base = driver.allocate(self._arena.size)
        if folder is not None:
            driver.load([(n, b, (folder / b.file).read_bytes()) for n, b in table.binaries.items()])
        driver.upload(weight_parts(plan, self._arena, self._base, weights))
        scratch = self._base + self._arena.scratch
        self._binding = Binding(plan, table, lambda a: self._arena.address(self._base, a), scratch)
        self._lock = Lock()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The results, by name; dims are read from the inputs' shapes, which must agree.

        Callers on several threads take turns. Raises `StepError` where the device does.
        """
        dims = module_dims(self._plan, self.inputs, inputs)
        with self._lock:
            for spec in self.inputs:
                data = np.ascontiguousarray(as_stored(inputs[spec.name], spec))
                self.driver.write(self._base + self._arena.steps[spec.name], data)
            self.driver.run(self.driver.pack(self._binding.bind(self._entry, dims)))
            found = {spec.name: self._read(spec, dims) for spec in self.results}
            self.driver.synchronize()
        return found

    def _read(self, spec: TensorSpec, dims: Mapping[str, int]) -> Array:
        shape = storage_shape(spec.dtype, evaluate_shape(spec.shape, dims))
        array = np.empty(shape, STORAGE[spec.dtype])
        self.driver.read(self._base + self._arena.steps[spec.name], array)
        return array

    def close(self) -> None:
        """Give the device's memory back, once it has done with it."""
        self.driver.release(self._base)
