"""A libcuda that has one device of 1 MiB in host memory and writes down what it is asked to do."""

from __future__ import annotations

import ctypes
from typing import Any

CAPTURING = "cuStreamBeginCapture_v2"


class FakeCuda:
    """Calls by name in `calls`; a launch with its grid, threads, shared memory and argument values.

    `fails` maps a function to the status that it answers; `sizes` the bytes of each argument of a
    kernel by its symbol.
    """

    def __init__(self, sizes: dict[str, list[int]], capability: tuple[int, int] = (9, 0)) -> None:
        self.sizes, self.capability = sizes, capability
        self.memory = ctypes.create_string_buffer(1 << 20)
        self.base = ctypes.addressof(self.memory)
        self.end = 0
        self.calls: list[tuple[Any, ...]] = []
        self.fails: dict[str, int] = {}
        self.symbols: dict[int, str] = {}
        self.attributes: list[tuple[str, int, int]] = []

    def __getattr__(self, name: str) -> Any:
        own = getattr(type(self), f"do_{name}", None)

        def call(*arguments: Any) -> int:
            if name in self.fails:
                return self.fails[name]
            if own is None:
                self.calls.append((name,))
                return 0
            return own(self, *arguments) or 0

        return call

    def do_cuGetErrorString(self, status: int, text: Any) -> None:
        text._obj.value = b"out of order"

    def do_cuDeviceGetName(self, text: Any, size: int, device: Any) -> None:
        text.value = b"Fake GPU"

    def do_cuDeviceGetAttribute(self, value: Any, which: int, device: Any) -> None:
        value._obj.value = self.capability[which - 75]

    def do_cuMemGetInfo_v2(self, free: Any, total: Any) -> None:
        free._obj.value, total._obj.value = (1 << 20) - self.end, 1 << 20

    def do_cuMemAlloc_v2(self, address: Any, size: Any) -> None:
        address._obj.value = self.base + self.end
        self.end += size.value

    def do_cuMemAllocHost_v2(self, pointer: Any, size: Any) -> None:
        self.do_cuMemAlloc_v2(pointer, size)

    def do_cuMemcpyHtoDAsync_v2(self, target: Any, source: Any, size: Any, stream: Any) -> None:
        ctypes.memmove(target.value, source.value, size.value)

    def do_cuMemcpyDtoHAsync_v2(self, target: Any, source: Any, size: Any, stream: Any) -> None:
        ctypes.memmove(target.value, source.value, size.value)

    do_cuMemcpyDtoDAsync_v2 = do_cuMemcpyHtoDAsync_v2

    def do_cuModuleGetFunction(self, function: Any, module: Any, symbol: bytes) -> None:
        function._obj.value = len(self.symbols) + 1
        self.symbols[function._obj.value] = symbol.decode()

    def do_cuFuncSetAttribute(self, function: Any, which: int, value: int) -> None:
        self.attributes.append((self.symbols[function.value], which, value))

    def do_cuLaunchKernel(self, function: Any, *rest: Any) -> None:
        *sizes, shared, _, array, _ = rest
        symbol = self.symbols[function.value]
        values = [
            int.from_bytes(ctypes.string_at(array[at], size), "little")
            for at, size in enumerate(self.sizes[symbol])
        ]
        self.calls.append(("launch", symbol, tuple(sizes), shared, values))

    def do_cuGraphInstantiateWithFlags(self, made: Any, graph: Any, flags: Any) -> None:
        self.calls.append(("instantiate",))
        made._obj.value = 77

    def do_cuGraphLaunch(self, made: Any, stream: Any) -> None:
        self.calls.append(("replay", made.value))
