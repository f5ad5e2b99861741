"""A GPU that is not there: its kernels run through Triton's interpreter, in another process."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..codegen.backend import backend_of
from ..ir.launches import Binary
from ..runtime.artifact import PLAN, WEIGHTS, read_plan
from ..runtime.cuda.driver import Given, Prepared
from ..runtime.cuda.executor import CudaExecutor
from ..runtime.cuda.opening import open_executor
from ..runtime.cuda.products import DTYPES
from ..runtime.errors import StepError
from ..runtime.pools import Pools
from ..runtime.tensors import Array
from ..runtime.weights import Weights
from .build import Kernels, Options, limits_of, serve, target_of
from .console import Silent
from .models import open_model
from .pipeline import Recorder
from .report import Clock
from .writing import write_weights

POISON = 0xFF  # a NaN in every float dtype, -1 in every integer


class InterpretedDriver:
    """Device memory as a file of `size` bytes, which the interpreting process maps too; the kernels
    of an artifact in `folder` run as their sources say.
    """

    name = "interpreter"

    def __init__(self, folder: Path, size: int = 256 << 20) -> None:
        self._folder = folder.resolve()
        self._file = tempfile.NamedTemporaryFile(prefix="ferrule-device-")  # noqa: SIM115
        self._file.truncate(size)
        self._memory = mmap.mmap(self._file.fileno(), size)
        self.bytes: Array = np.frombuffer(self._memory, np.uint8)
        self._end = 0
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ferrule.codegen.triton.interpret"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._ask({"memory": self._file.name})

    def _ask(self, request: Mapping[str, object]) -> None:
        process = self._process
        assert process.stdin is not None and process.stdout is not None, "opened with pipes"
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise StepError(f"the interpreter ended with status {process.wait()}")
        error = json.loads(line).get("error")
        if error:
            raise StepError(f"interpreted kernel {request.get('launch')}: {error}")

    def free_bytes(self) -> int:
        """Bytes of the file that nobody holds."""
        return self.bytes.size - self._end

    def allocate(self, size: int) -> int:
        """The next so many bytes, poisoned."""
        start = self._end
        if start + size > self.bytes.size:
            raise MemoryError(f"{size} bytes of {self.free_bytes()} that are free")
        self._end += -(-size // 256) * 256
        self.bytes[start : start + size] = POISON
        return start

    def release(self, address: int) -> None:
        """Give back what was allocated last."""
        self._end = address

    def write(self, address: int, data: Array) -> None:
        """Copy into the file."""
        self.bytes[address : address + data.nbytes] = data.reshape(-1).view(np.uint8)

    def upload(self, parts: Iterable[tuple[int, Array]]) -> None:
        """Copy into the file, one after another."""
        for address, data in parts:
            self.write(address, data)

    def read(self, address: int, data: Array) -> None:
        """Copy out of the file."""
        data.reshape(-1).view(np.uint8)[:] = self.bytes[address : address + data.nbytes]

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy inside the file."""
        self.bytes[target : target + size] = self.bytes[source : source + size]

    def host(self, size: int) -> Array:
        """Memory of this process."""
        return np.zeros(size, np.uint8)

    def load(self, binaries: Sequence[tuple[str, Binary, bytes]]) -> None:
        """Nothing: sources are read when they are launched."""

    def pack(self, launches: Sequence[Prepared]) -> object:
        """The launches themselves."""
        return tuple(launches)

    def run(self, packed: object) -> None:
        """Interpret one launch after another."""
        assert isinstance(packed, tuple), packed
        for each in packed:
            self.interpret(each)

    def interpret(self, each: Prepared) -> None:
        """Interpret a launch, or make a product as the vendor's library does."""
        if each.product is not None:
            self.multiply(each.arguments, each.product)
            return
        request = {
            "launch": [str(self._folder / each.source), each.launch.entry],
            "grid": list(each.grid),
            "arguments": [list(g) for g in each.arguments],
            "constants": dict(each.launch.constants),
        }
        self._ask(request)

    def multiply(self, matrices: Sequence[Given], sizes: tuple[int, int, int]) -> None:
        """y = x w^T of 16 bits for so many rows, columns and so much depth, sums in float32."""
        rows, columns, depth = sizes
        shapes = ((rows, depth), (columns, depth), (rows, columns))
        x, w, y = (self._matrix(g, s) for g, s in zip(matrices, shapes, strict=True))
        y[...] = (x.float() @ w.float().T).to(y.dtype)

    def _matrix(self, given: Given, shape: tuple[int, int]) -> torch.Tensor:
        size = 2 * shape[0] * shape[1]
        flat = torch.from_numpy(self.bytes[given.value : given.value + size])
        return flat.view(getattr(torch, DTYPES[given.dtype])).reshape(shape)

    def time(self, groups: Sequence[object]) -> list[float]:
        """Interpret group after group; the seconds are the interpreter's."""
        found: list[float] = []
        for packed in groups:
            begin = time.perf_counter()
            self.run(packed)
            found.append(time.perf_counter() - begin)
        return found

    def record(self, packed: object, times: int = 1) -> object:
        """The launches themselves, so many times."""
        assert isinstance(packed, tuple), packed
        return packed * times

    def replay(self, recorded: object) -> None:
        """Run what was recorded."""
        self.run(recorded)

    def mark(self, mark: object = None) -> object:
        """Nothing runs behind the caller's back."""
        return mark or "mark"

    def wait(self, mark: object) -> None:
        """Nothing runs behind the caller's back."""

    def synchronize(self) -> None:
        """Nothing runs behind the caller's back."""

    def close(self) -> None:
        """End the process; the file goes."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(timeout=30)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._file.close()


def interpret(
    model: nn.Module | str | Path, folder: Path, options: Options, pools: Pools
) -> CudaExecutor:
    """A language model built into a folder for a GPU, without machine code, as an executor with so
    many blocks of cache and states, its kernels interpreted; `executor.driver.close()` ends it.
    """
    target, clock, shown = target_of(options), Clock(), Silent()
    recorder = Recorder()
    opened = open_model(model, options.dtype)
    made = serve(opened, options, recorder, clock, shown)
    limits = limits_of(made.sizes, made.graph)
    kernels = Kernels.of(made.graph, backend_of(target), recorder, limits, recipe=options.recipe)
    kernels.write(folder, target, clock, shown, options.records(), machine_code=False)
    write_weights(folder / WEIGHTS, kernels.step, kernels.preparation, made.weights, shown)
    return interpreted_executor(folder, pools)


def interpreted_executor(folder: Path, pools: Pools) -> CudaExecutor:
    """An executor of what was built into a folder, its kernels interpreted."""
    weights, plan = Weights(folder / WEIGHTS), read_plan(folder / PLAN)
    return open_executor(folder, plan, weights, InterpretedDriver(folder), pools)
