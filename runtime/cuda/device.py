"""A CUDA device through the driver API (libcuda.so.1, by ctypes): what the driver itself brings is
all that is needed.

Names, values and signatures are those of cuda.h, CUDA 12 (CUDA Driver API reference manual).
"""

import ctypes
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ...ir.launches import Binary
from ..errors import ArtifactError, StepError
from ..tensors import Array
from .driver import Given, Prepared

LIBRARY = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_DEFAULT_SHARED = 48 << 10
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING


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


class CudaDevice:
    """The first device that the process sees (CUDA_VISIBLE_DEVICES says which), one stream.

    `library` stands in for libcuda in tests. Raises ArtifactError where there is no device.
    """

    def __init__(self, number: int = 0, library: Any = None) -> None:
        self._cuda = library if library is not None else _loaded()
        self._call("cuInit", 0)
        device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(device), number)
        text = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", text, 256, device)
        self.name = text.value.decode()
        self.capability = tuple(self._attribute(device, a) for a in (_MAJOR, _MINOR))
        self._device = device
        self._context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self._enter()
        self._stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(self._stream), _NON_BLOCKING)
        self._functions: dict[str, tuple[ctypes.c_void_p, Binary]] = {}
        self._modules: list[ctypes.c_void_p] = []
        self._pinned: list[Array] = []

    def _enter(self) -> None:
        """Make the device's context the calling thread's."""
        self._call("cuCtxSetCurrent", self._context)

    def _attribute(self, device: ctypes.c_int, which: int) -> int:
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), which, device)
        return value.value

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._cuda, name)(*arguments)
        if status:
            raise StepError(f"{name}: {self._reason(status)}")

    def _reason(self, status: int) -> str:
        text = ctypes.c_char_p()
        if self._cuda.cuGetErrorString(status, ctypes.byref(text)) or text.value is None:
            return f"error {status}"
        return f"{text.value.decode()} (error {status})"

    @property
    def arch(self) -> str:
        """The device's compute capability as targets write it."""
        return f"sm_{self.capability[0]}{self.capability[1]}"

    def free_bytes(self) -> int:
        """Memory of the device that nobody holds."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._enter()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def allocate(self, size: int) -> int:
        """The address of so many bytes."""
        address = ctypes.c_uint64()
        self._enter()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        return address.value

    def release(self, address: int) -> None:
        """Give memory back."""
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def write(self, address: int, data: Array) -> None:
        """Copy host memory to the device, in the stream's order."""
        self._pinned.append(data)  # it must live until the copy is done
        self._call(
            "cuMemcpyHtoDAsync_v2",
            ctypes.c_uint64(address),
            ctypes.c_void_p(data.ctypes.data),
            ctypes.c_size_t(data.nbytes),
            self._stream,
        )

    def read(self, address: int, data: Array) -> None:
        """Copy device memory to the host, in the stream's order."""
        self._call(
            "cuMemcpyDtoHAsync_v2",
            ctypes.c_void_p(data.ctypes.data),
            ctypes.c_uint64(address),
            ctypes.c_size_t(data.nbytes),
            self._stream,
        )

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy inside the device, in the stream's order."""
        self._call(
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
        self._call("cuMemAllocHost_v2", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        assert pointer.value is not None, "an allocation that succeeded"
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer.value))

    def load(self, binaries: Sequence[tuple[str, Binary, bytes]]) -> None:
        """Load machine code; raises StepError where the device does not take it."""
        self._enter()
        for name, binary, image in binaries:
            module, function = ctypes.c_void_p(), ctypes.c_void_p()
            self._call("cuModuleLoadData", ctypes.byref(module), image)
            symbol = binary.symbol.encode()
            self._call("cuModuleGetFunction", ctypes.byref(function), module, symbol)
            if binary.shared > _DEFAULT_SHARED:
                self._call("cuFuncSetAttribute", function, _DYNAMIC_SHARED, binary.shared)
            self._modules.append(module)
            self._functions[name] = (function, binary)

    def run(self, launches: Sequence[Prepared]) -> None:
        """Launch one after another; errors name the kernel."""
        self._enter()
        for each in launches:
            if each.launch.binary not in self._functions:
                raise StepError(f"no machine code of {each.launch.binary!r} is loaded")
            function, binary = self._functions[each.launch.binary]
            packed = Packed(each.arguments, binary.hidden, each.workspace)
            try:
                self._call(
                    "cuLaunchKernel", function, *each.grid, binary.threads, 1, 1, binary.shared,
                    self._stream, packed.array, None,
                )  # fmt: skip
            except StepError as error:
                raise StepError(f"kernel {each.launch.binary!r}: {error}") from error

    def time(self, groups: Sequence[Sequence[Prepared]]) -> list[float]:
        """Launch group after group, events between them; gives the seconds of each."""
        self._enter()
        events = [ctypes.c_void_p() for _ in range(len(groups) + 1)]
        for event in events:
            self._call("cuEventCreate", ctypes.byref(event), 0)
        try:
            self._call("cuEventRecord", events[0], self._stream)
            for launches, event in zip(groups, events[1:], strict=True):
                self.run(launches)
                self._call("cuEventRecord", event, self._stream)
            self.synchronize()
            return [self._between(a, b) for a, b in pairwise(events)]
        finally:
            for event in events:
                self._call("cuEventDestroy_v2", event)

    def _between(self, first: ctypes.c_void_p, second: ctypes.c_void_p) -> float:
        milliseconds = ctypes.c_float()
        self._call("cuEventElapsedTime", ctypes.byref(milliseconds), first, second)
        return milliseconds.value / 1e3

    def record(self, launches: Sequence[Prepared]) -> object:
        """The launches as a CUDA graph."""
        self._enter()
        graph, made = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", self._stream, _THREAD_LOCAL)
        try:
            self.run(launches)
        finally:
            self._call("cuStreamEndCapture", self._stream, ctypes.byref(graph))
        self._call("cuGraphInstantiateWithFlags", ctypes.byref(made), graph, ctypes.c_ulonglong(0))
        self._call("cuGraphDestroy", graph)
        return made

    def replay(self, recorded: object) -> None:
        """Launch a graph."""
        self._enter()
        self._call("cuGraphLaunch", recorded, self._stream)

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._call("cuStreamSynchronize", self._stream)
        self._pinned.clear()

    def close(self) -> None:
        """Unload the kernels and leave the device."""
        for module in self._modules:
            self._call("cuModuleUnload", module)
        self._modules.clear()
        self._functions.clear()
        self._call("cuStreamDestroy_v2", self._stream)
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)


def _loaded() -> Any:
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise ArtifactError(f"no CUDA device here: {LIBRARY} cannot be loaded: {error}") from None
