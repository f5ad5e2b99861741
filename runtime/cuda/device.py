"""A CUDA device through the driver API: one context, one stream, kernels by name."""

import ctypes
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ...ir.launches import Binary
from ..errors import StepError
from ..tensors import Array
from .driver import Given, Prepared
from .libcuda import (
    DYNAMIC_SHARED,
    MAJOR,
    MINOR,
    NO_TIMING,
    NON_BLOCKING,
    THREAD_LOCAL,
    Cuda,
)
from .products import Product, Products, TorchProducts
from .uploads import upload

_DEFAULT_SHARED = 48 << 10


class Packed:
    """The arguments of a launch as cuLaunchKernel takes them: an array of pointers to values,
    addresses of 64 bits and whole numbers of 32, hidden addresses last: `workspace`, then nulls.
    """

    def __init__(self, arguments: Sequence[Given], hidden: int, workspace: int = 0) -> None:
        self.values: list[Any] = [
            ctypes.c_uint64(a.value) if a.dtype else ctypes.c_int32(a.value) for a in arguments
        ]
        self.values += [ctypes.c_uint64(workspace if i == 0 else 0) for i in range(hidden)]
        pointers = [ctypes.cast(ctypes.byref(v), ctypes.c_void_p) for v in self.values]
        self.array = (ctypes.c_void_p * len(pointers))(*pointers)


class _Ready(NamedTuple):
    """A launch with everything that cuLaunchKernel takes."""

    name: str
    function: ctypes.c_void_p
    grid: tuple[int, int, int]
    threads: int
    shared: int
    packed: Packed


class _Multiplied(NamedTuple):
    """A product that the vendor's library makes."""

    product: Product
    run: Callable[[], object]


class CudaDevice:
    """The first device that the process sees (CUDA_VISIBLE_DEVICES says which), one stream.

    It may be driven from several threads, one at a time: each call makes the device's context the
    calling thread's. `library` stands in for libcuda in tests, `products` for what multiplies on
    the stream. Raises ArtifactError where there is no device.
    """

    def __init__(
        self,
        number: int = 0,
        library: Any = None,
        products: Callable[[int], Products] = TorchProducts,
    ) -> None:
        self._cuda = Cuda(library)
        self._cuda("cuInit", 0)
        device = ctypes.c_int()
        self._cuda("cuDeviceGet", ctypes.byref(device), number)
        text = ctypes.create_string_buffer(256)
        self._cuda("cuDeviceGetName", text, 256, device)
        self.name = text.value.decode()
        self.capability = tuple(self._attribute(device, a) for a in (MAJOR, MINOR))
        self._device = device
        self._context = ctypes.c_void_p()
        self._cuda("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self._enter()
        self._stream = ctypes.c_void_p()
        self._cuda("cuStreamCreate", ctypes.byref(self._stream), NON_BLOCKING)
        self._open_products = products
        self._products: Products | None = None
        self._functions: dict[str, tuple[ctypes.c_void_p, Binary]] = {}
        self._modules: list[ctypes.c_void_p] = []
        self._graphs: list[ctypes.c_void_p] = []
        self._marks: list[ctypes.c_void_p] = []
        self._locked: dict[int, int] = {}
        self._pending: list[Array] = []

    def _enter(self) -> None:
        """Make the device's context the calling thread's."""
        self._cuda("cuCtxSetCurrent", self._context)

    def _attribute(self, device: ctypes.c_int, which: int) -> int:
        value = ctypes.c_int()
        self._cuda("cuDeviceGetAttribute", ctypes.byref(value), which, device)
        return value.value

    @property
    def arch(self) -> str:
        """The device's compute capability as targets write it."""
        return f"sm_{self.capability[0]}{self.capability[1]}"

    def free_bytes(self) -> int:
        """Memory of the device that nobody holds."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._enter()
        self._cuda("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def allocate(self, size: int) -> int:
        """The address of so many bytes."""
        address = ctypes.c_uint64()
        self._enter()
        self._cuda("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        return address.value

    def release(self, address: int) -> None:
        """Give memory back, once the stream has done with it."""
        self.synchronize()
        self._cuda("cuMemFree_v2", ctypes.c_uint64(address))

    def write(self, address: int, data: Array) -> None:
        """Copy host memory to the device, in the stream's order. What `host` gave must stay as it
        is until the stream has passed the copy.
        """
        self._enter()
        source = data.ctypes.data
        if not any(begin <= source < end for begin, end in self._locked.items()):
            self._pending.append(data)  # it must live until the copy is done
        self._cuda(
            "cuMemcpyHtoDAsync_v2",
            ctypes.c_uint64(address),
            ctypes.c_void_p(source),
            ctypes.c_size_t(data.nbytes),
            self._stream,
        )

    def upload(self, parts: Iterable[tuple[int, Array]]) -> None:
        """Copy much host memory to addresses of the device; done when this returns."""
        upload(self, parts)
        self.synchronize()

    def read(self, address: int, data: Array) -> None:
        """Copy device memory to the host, in the stream's order."""
        self._enter()
        self._cuda(
            "cuMemcpyDtoHAsync_v2",
            ctypes.c_void_p(data.ctypes.data),
            ctypes.c_uint64(address),
            ctypes.c_size_t(data.nbytes),
            self._stream,
        )

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy inside the device, in the stream's order."""
        self._enter()
        self._cuda(
            "cuMemcpyDtoDAsync_v2",
            ctypes.c_uint64(target),
            ctypes.c_uint64(source),
            ctypes.c_size_t(size),
            self._stream,
        )

    def host(self, size: int) -> Array:
        """Page-locked host memory, which copies reach without the host's help."""
        pointer = ctypes.c_void_p()
        self._enter()
        self._cuda("cuMemAllocHost_v2", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        assert pointer.value is not None, "an allocation that succeeded"
        self._locked[pointer.value] = pointer.value + size
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer.value))

    def unlock(self, memory: Array) -> None:
        """Give back what `host` gave; the stream must have done with it."""
        self._enter()
        del self._locked[memory.ctypes.data]
        self._cuda("cuMemFreeHost", ctypes.c_void_p(memory.ctypes.data))

    def load(self, binaries: Sequence[tuple[str, Binary, bytes]]) -> None:
        """Load machine code; raises StepError where the device does not take it."""
        self._enter()
        for name, binary, image in binaries:
            module, function = ctypes.c_void_p(), ctypes.c_void_p()
            try:
                self._cuda("cuModuleLoadData", ctypes.byref(module), image)
                self._modules.append(module)
                symbol = binary.symbol.encode()
                self._cuda("cuModuleGetFunction", ctypes.byref(function), module, symbol)
                if binary.shared > _DEFAULT_SHARED:
                    self._cuda("cuFuncSetAttribute", function, DYNAMIC_SHARED, binary.shared)
            except StepError as error:
                raise StepError(f"machine code {name!r}: {error}") from error
            self._functions[name] = (function, binary)

    def pack(self, launches: Sequence[Prepared]) -> Sequence[_Ready | _Multiplied]:
        """Launches with their arguments packed; raises ArtifactError where there are products by
        the vendor's library and nothing to make them with.
        """
        return tuple(
            self._ready(each) if each.product is None else self._multiplied(each, each.product)
            for each in launches
        )

    def _multiplied(self, each: Prepared, sizes: tuple[int, int, int]) -> _Multiplied:
        x, w, y = each.arguments
        product = Product(x.dtype, x.value, w.value, y.value, *sizes)
        return _Multiplied(product, self.products.ready(product))

    @property
    def products(self) -> Products:
        """What makes products on the stream, opened when it is first asked for; raises
        ArtifactError where there is nothing.
        """
        if self._products is None:
            self._enter()
            self._products = self._open_products(self._stream.value or 0)
        return self._products

    def _ready(self, each: Prepared) -> _Ready:
        name = each.launch.binary
        if name not in self._functions:
            raise StepError(f"no machine code of {name!r} is loaded")
        function, binary = self._functions[name]
        packed = Packed(each.arguments, binary.hidden, each.workspace)
        return _Ready(name, function, each.grid, binary.threads, binary.shared, packed)

    def run(self, packed: object) -> None:
        """Launch what `pack` gave, one after another; errors name the kernel."""
        assert isinstance(packed, tuple), packed
        self._enter()
        for each in packed:
            self._launch(each)

    def _launch(self, each: _Ready | _Multiplied) -> None:
        if isinstance(each, _Multiplied):
            try:
                each.run()
            except RuntimeError as error:
                raise StepError(f"cuBLAS, {each.product}: {error}") from error
            return
        try:
            self._cuda(
                "cuLaunchKernel", each.function, *each.grid, each.threads, 1, 1, each.shared,
                self._stream, each.packed.array, None,
            )  # fmt: skip
        except StepError as error:
            raise StepError(f"kernel {each.name!r}: {error}") from error

    def time(self, groups: Sequence[object]) -> list[float]:
        """Launch group after group, events between them; gives the seconds of each."""
        self._enter()
        events = [self._event(0) for _ in range(len(groups) + 1)]
        try:
            self._cuda("cuEventRecord", events[0], self._stream)
            for packed, event in zip(groups, events[1:], strict=True):
                self.run(packed) if isinstance(packed, tuple) else self.replay(packed)
                self._cuda("cuEventRecord", event, self._stream)
            self.synchronize()
            return [self._between(a, b) for a, b in pairwise(events)]
        finally:
            for event in events:
                self._cuda("cuEventDestroy_v2", event)

    def _event(self, flags: int) -> ctypes.c_void_p:
        event = ctypes.c_void_p()
        self._cuda("cuEventCreate", ctypes.byref(event), flags)
        return event

    def _between(self, first: ctypes.c_void_p, second: ctypes.c_void_p) -> float:
        milliseconds = ctypes.c_float()
        self._cuda("cuEventElapsedTime", ctypes.byref(milliseconds), first, second)
        return milliseconds.value / 1e3

    def record(self, packed: object, times: int = 1) -> object:
        """What `pack` gave, so many times, as a CUDA graph.

        The arguments are copied into the graph. Nothing else of this thread may call the driver
        in between: copies, allocations and waits are no part of a graph of launches. Products are
        made once before, as their first run may allocate.
        """
        self._enter()
        for each in _all(packed):
            if isinstance(each, _Multiplied):
                self._launch(each)
        graph = self._captured(
            lambda: [self._launch(e) for _ in range(times) for e in _all(packed)]
        )
        made = ctypes.c_void_p()
        try:
            flags = ctypes.c_ulonglong(0)
            self._cuda("cuGraphInstantiateWithFlags", ctypes.byref(made), graph, flags)
        finally:
            self._cuda("cuGraphDestroy", graph)
        self._graphs.append(made)
        return made

    def _captured(self, launch: Callable[[], object]) -> ctypes.c_void_p:
        graph = ctypes.c_void_p()
        self._cuda("cuStreamBeginCapture_v2", self._stream, THREAD_LOCAL)
        try:
            launch()
        except BaseException:
            # The stream has to leave the capture, whose own error says less than this one.
            try:
                self._cuda("cuStreamEndCapture", self._stream, ctypes.byref(graph))
                if graph.value:
                    self._cuda("cuGraphDestroy", graph)
            except StepError:
                pass
            raise
        self._cuda("cuStreamEndCapture", self._stream, ctypes.byref(graph))
        return graph

    def replay(self, recorded: object) -> None:
        """Launch a graph."""
        self._enter()
        self._cuda("cuGraphLaunch", recorded, self._stream)

    def mark(self, mark: object = None) -> object:
        """A mark in the stream behind all that it was given; an old one moves there."""
        self._enter()
        if mark is None:
            mark = self._event(NO_TIMING)
            self._marks.append(mark)
        self._cuda("cuEventRecord", mark, self._stream)
        return mark

    def wait(self, mark: object) -> None:
        """Wait until the stream has passed a mark."""
        self._enter()
        self._cuda("cuEventSynchronize", mark)

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._enter()
        self._cuda("cuStreamSynchronize", self._stream)
        self._pending.clear()

    def close(self) -> None:
        """Give back graphs, marks, kernels, page-locked memory, and leave the device; a second
        time does nothing. Arrays that `host` gave are gone.
        """
        if not self._stream:
            return
        self.synchronize()
        for graph in self._graphs:
            self._cuda("cuGraphExecDestroy", graph)
        for mark in self._marks:
            self._cuda("cuEventDestroy_v2", mark)
        for module in self._modules:
            self._cuda("cuModuleUnload", module)
        for address in self._locked:
            self._cuda("cuMemFreeHost", ctypes.c_void_p(address))
        for kept in (self._graphs, self._marks, self._modules, self._locked):
            kept.clear()
        self._functions.clear()
        self._cuda("cuStreamDestroy_v2", self._stream)
        self._stream = ctypes.c_void_p()
        self._cuda("cuDevicePrimaryCtxRelease_v2", self._device)


def _all(packed: object) -> Sequence[_Ready | _Multiplied]:
    assert isinstance(packed, tuple), packed
    return packed
