"""A libcuda that has one device in host memory and holds whoever calls it to the rules of the
driver API (CUDA Driver API reference manual, CUDA 12).

Arguments are of the C types that functions take. A thread has a context before it does anything.
What is asked of a stream happens when somebody waits for it and not before: a copy out of
page-locked memory then takes what lies there, a result is not there earlier. A capture takes
launches alone. Addresses are of memory that is allocated, of page-locked memory, or of any host
memory where a copy is staged. Grids, blocks and shared memory have limits; handles have an end.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ferrule.runtime.cuda.products import Product

INVALID_VALUE, OUT_OF_MEMORY, NO_CONTEXT, BAD_HANDLE, NOT_READY = 1, 2, 201, 400, 600
ILLEGAL_ADDRESS, UNSUPPORTED, INVALIDATED = 700, 900, 901
SHARED, MOST_SHARED = 48 << 10, 227 << 10
ALIGNED = 256

# Of each function: what its arguments are. h a handle, i an int, u an unsigned long long, s a
# size, d a device's address, m a host's, b bytes, o the place of a result, a an array, n nothing.
SIGNATURES = {
    "cuInit": "i", "cuGetErrorString": "io", "cuDeviceGet": "oi", "cuDeviceGetName": "mii",
    "cuDeviceGetAttribute": "oii", "cuDevicePrimaryCtxRetain": "oi",
    "cuDevicePrimaryCtxRelease_v2": "i", "cuCtxSetCurrent": "h", "cuStreamCreate": "oi",
    "cuStreamDestroy_v2": "h", "cuStreamSynchronize": "h", "cuMemGetInfo_v2": "oo",
    "cuMemAlloc_v2": "os", "cuMemFree_v2": "d", "cuMemAllocHost_v2": "os", "cuMemFreeHost": "m",
    "cuMemcpyHtoDAsync_v2": "dmsh", "cuMemcpyDtoHAsync_v2": "mdsh", "cuMemcpyDtoDAsync_v2": "ddsh",
    "cuModuleLoadData": "ob", "cuModuleUnload": "h", "cuModuleGetFunction": "ohb",
    "cuFuncSetAttribute": "hii", "cuLaunchKernel": "hiiiiiiihan", "cuEventCreate": "oi",
    "cuEventDestroy_v2": "h", "cuEventRecord": "hh", "cuEventSynchronize": "h",
    "cuEventElapsedTime": "ohh", "cuStreamBeginCapture_v2": "hi", "cuStreamEndCapture": "ho",
    "cuGraphInstantiateWithFlags": "ohu", "cuGraphDestroy": "h", "cuGraphExecDestroy": "h",
    "cuGraphLaunch": "hh",
}  # fmt: skip
TYPES = {
    "h": (ctypes.c_void_p,), "i": (int, ctypes.c_int), "u": (ctypes.c_ulonglong,),
    "s": (ctypes.c_size_t,), "d": (ctypes.c_uint64,), "b": (bytes,), "n": (type(None),),
    "m": (ctypes.c_void_p, ctypes.Array), "o": (type(ctypes.byref(ctypes.c_int())),),
    "a": (ctypes.Array,),
}  # fmt: skip
FREE = (
    "cuInit", "cuGetErrorString", "cuCtxSetCurrent", "cuDeviceGet", "cuDeviceGetName",
    "cuDeviceGetAttribute", "cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease_v2",
)  # fmt: skip
"""What needs no context."""
CAPTURABLE = ("cuLaunchKernel", "cuCtxSetCurrent", "cuStreamEndCapture", "cuGetErrorString")


class Refused(Exception):
    """A call that the driver answers with a status."""


@dataclass
class _Event:
    timed: bool
    recorded: bool = False
    at: float | None = None


@dataclass
class _Graph:
    work: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])
    broken: bool = False


@dataclass(frozen=True)
class Launched:
    """A launch: symbol, grid, threads, shared memory and argument values."""

    symbol: str
    grid: tuple[int, int, int]
    threads: int
    shared: int
    values: tuple[int, ...]


class FakeCuda:
    """Calls by name in `calls`, launches, when they happen, in `launched`.

    `sizes` are the bytes of each argument of a kernel by its symbol; where it is None any kernel
    is taken and nothing is known of arguments; `fails` maps a function to the
    status that it answers; `runs` is called with each launch when it happens. Memory is `memory`,
    or of `size` bytes. A launch takes `seconds` of the device's time, which is the clock of events.
    """

    def __init__(
        self,
        sizes: dict[str, list[int]] | None,
        capability: tuple[int, int] = (9, 0),
        memory: Any = None,
        size: int = 4 << 20,
        runs: Callable[[Launched], None] | None = None,
        seconds: Callable[[Launched], float] = lambda _: 1e-3,
    ) -> None:
        self.sizes, self.capability, self.runs = sizes, capability, runs
        self.seconds = seconds
        self._warm: set[object] = set()
        self._memory = ctypes.create_string_buffer(size) if memory is None else memory
        size = ctypes.sizeof(self._memory)
        start = ctypes.addressof(self._memory)
        self.base, self.limit = -(-start // ALIGNED) * ALIGNED, start + size
        self._end = self.base
        self.allocated: dict[int, int] = {}
        self.locked: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self.calls: list[str] = []
        self.launched: list[Launched] = []
        self.fails: dict[str, int] = {}
        self.attributes: dict[str, int] = {}
        self.live: dict[int, Any] = {}
        self._owned: dict[int, list[int]] = {}
        self._numbers = iter(range(1, 1 << 30))
        self._queue: list[Callable[[], None]] = []
        self._capture: _Graph | None = None
        self._current = threading.local()
        self._clock = 0.0

    def __getattr__(self, name: str) -> Any:
        if name not in SIGNATURES:
            raise AttributeError(f"libcuda has no {name}, or this one does not know it")

        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name in self.fails:
                return self.fails[name]
            self._check_types(name, arguments)
            if name not in FREE and not getattr(self._current, "context", None):
                return NO_CONTEXT
            if self._capture is not None and name not in CAPTURABLE:
                self._capture.broken = True
                return UNSUPPORTED
            try:
                getattr(self, f"do_{name}")(*arguments)
            except Refused as refused:
                return int(refused.args[0])
            return 0

        return call

    def _check_types(self, name: str, arguments: Sequence[Any]) -> None:
        wanted = SIGNATURES[name]
        assert len(arguments) == len(wanted), f"{name} takes {len(wanted)}, not {len(arguments)}"
        for at, (value, kind) in enumerate(zip(arguments, wanted, strict=True)):
            assert isinstance(value, TYPES[kind]), f"{name}, argument {at}: {value!r} is no {kind}"
            if kind == "i" and isinstance(value, int):
                assert -(1 << 31) <= value < 1 << 31, f"{name}, argument {at}: {value}"

    def _new(self, thing: Any) -> int:
        number = next(self._numbers)
        self.live[number] = thing
        return number

    def _of(self, handle: ctypes.c_void_p, kind: type | str) -> Any:
        thing = self.live.get(handle.value or 0)
        good = thing == kind if isinstance(kind, str) else isinstance(thing, kind)
        if not good:
            raise Refused(BAD_HANDLE)
        return thing

    def _ask(self, stream: ctypes.c_void_p, work: Callable[[], None]) -> None:
        self._of(stream, "stream")
        (self._queue if self._capture is None else self._capture.work).append(work)

    def _drain(self) -> None:
        queue, self._queue = self._queue, []
        for work in queue:
            work()

    # -- device and context

    def do_cuInit(self, flags: int) -> None:
        assert flags == 0

    def do_cuGetErrorString(self, status: int, text: Any) -> None:
        text._obj.value = {UNSUPPORTED: b"not in a capture"}.get(status, b"out of order")

    def do_cuDeviceGet(self, device: Any, number: int) -> None:
        device._obj.value = number

    def do_cuDeviceGetName(self, text: Any, size: int, device: Any) -> None:
        text.value = b"Fake GPU"

    def do_cuDeviceGetAttribute(self, value: Any, which: int, device: Any) -> None:
        value._obj.value = {75: self.capability[0], 76: self.capability[1], 16: 132}[which]

    def do_cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> None:
        context._obj.value = self._new("context")

    def do_cuDevicePrimaryCtxRelease_v2(self, device: Any) -> None:
        self.live = {n: t for n, t in self.live.items() if t != "context"}

    def do_cuCtxSetCurrent(self, context: ctypes.c_void_p) -> None:
        self._of(context, "context")
        self._current.context = context.value

    # -- memory

    def do_cuMemGetInfo_v2(self, free: Any, total: Any) -> None:
        free._obj.value, total._obj.value = self.limit - self._end, self.limit - self.base

    def do_cuMemAlloc_v2(self, address: Any, size: Any) -> None:
        if self._end + size.value > self.limit:
            raise Refused(OUT_OF_MEMORY)
        address._obj.value = self._end
        self.allocated[self._end] = size.value
        ctypes.memset(self._end, 0xFF, size.value)  # what was there before is nobody's
        self._end += -(-size.value // ALIGNED) * ALIGNED

    def do_cuMemFree_v2(self, address: Any) -> None:
        assert not self._queue, "memory is given back that the stream may still use"
        if self.allocated.pop(address.value, None) is None:
            raise Refused(INVALID_VALUE)

    def do_cuMemAllocHost_v2(self, pointer: Any, size: Any) -> None:
        memory = ctypes.create_string_buffer(size.value)
        ctypes.memset(memory, 0xEE, size.value)
        self.locked[ctypes.addressof(memory)] = memory
        pointer._obj.value = ctypes.addressof(memory)

    def do_cuMemFreeHost(self, pointer: Any) -> None:
        assert not self._queue, "page-locked memory is given back that the stream may still use"
        if self.locked.pop(pointer.value, None) is None:
            raise Refused(INVALID_VALUE)

    def _inside(self, address: int, size: int) -> None:
        if not any(a <= address and address + size <= a + n for a, n in self.allocated.items()):
            raise Refused(ILLEGAL_ADDRESS)

    def _is_locked(self, address: int, size: int) -> bool:
        return any(a <= address and address + size <= a + len(m) for a, m in self.locked.items())

    def do_cuMemcpyHtoDAsync_v2(self, target: Any, source: Any, size: Any, stream: Any) -> None:
        to, at, count = target.value, source.value, size.value
        self._inside(to, count)
        if self._is_locked(at, count):
            self._ask(stream, lambda: ctypes.memmove(to, at, count) and None)
            return
        staged = ctypes.create_string_buffer(ctypes.string_at(at, count), max(count, 1))
        self._ask(stream, lambda: ctypes.memmove(to, staged, count) and None)

    def do_cuMemcpyDtoHAsync_v2(self, target: Any, source: Any, size: Any, stream: Any) -> None:
        to, at, count = target.value, source.value, size.value
        self._inside(at, count)
        self._ask(stream, lambda: ctypes.memmove(to, at, count) and None)
        if not self._is_locked(to, count):
            self._drain()

    def do_cuMemcpyDtoDAsync_v2(self, target: Any, source: Any, size: Any, stream: Any) -> None:
        to, at, count = target.value, source.value, size.value
        self._inside(to, count)
        self._inside(at, count)
        self._ask(stream, lambda: ctypes.memmove(to, at, count) and None)

    # -- kernels

    def do_cuModuleLoadData(self, module: Any, image: bytes) -> None:
        if not image:
            raise Refused(INVALID_VALUE)
        module._obj.value = self._new(("module", image))

    def do_cuModuleUnload(self, module: Any) -> None:
        assert not self._queue, "kernels are unloaded that the stream may still run"
        self._of(module, tuple)
        gone = {module.value, *self._owned.pop(module.value, ())}
        self.live = {n: t for n, t in self.live.items() if n not in gone}

    def do_cuModuleGetFunction(self, function: Any, module: Any, symbol: bytes) -> None:
        self._of(module, tuple)
        if self.sizes is not None and symbol.decode() not in self.sizes:
            raise Refused(500)  # CUDA_ERROR_NOT_FOUND
        function._obj.value = self._new(symbol)
        self._owned.setdefault(module.value, []).append(function._obj.value)

    def do_cuFuncSetAttribute(self, function: Any, which: int, value: int) -> None:
        if which != 8 or value > MOST_SHARED:
            raise Refused(INVALID_VALUE)
        self.attributes[self._of(function, bytes).decode()] = value

    def do_cuLaunchKernel(self, function: Any, *rest: Any) -> None:
        x, y, z, threads, *block, shared, stream, array, _ = rest
        symbol = self._of(function, bytes).decode()
        good = x >= 1 and 1 <= y <= 65535 and 1 <= z <= 65535 and block == [1, 1]
        room = max(SHARED, self.attributes.get(symbol, 0))
        if not good or not 1 <= threads <= 1024 or shared > room:
            raise Refused(INVALID_VALUE)
        values = () if self.sizes is None else self._values(symbol, array, self.sizes[symbol])
        launch = Launched(symbol, (x, y, z), threads, shared, values)
        self._ask(stream, lambda: self._run(launch))

    def _values(self, symbol: str, array: Any, sizes: Sequence[int]) -> tuple[int, ...]:
        assert len(array) == len(sizes), f"{symbol} takes {sizes}"
        values = tuple(
            int.from_bytes(ctypes.string_at(array[at], size), "little")
            for at, size in enumerate(sizes)
        )
        for value, size in zip(values, sizes, strict=True):
            if size == 8 and value:
                self._inside(value, 1)
                assert value % 16 == 0, f"{symbol}: {value} is no multiple of 16"
        return values

    def _run(self, launch: Launched) -> None:
        self._clock += self.seconds(launch)
        self.launched.append(launch)
        if self.runs is not None:
            self.runs(launch)

    def foreign(self, key: object, seconds: float, work: Callable[[], None]) -> None:
        """Work that a library of its own puts on the stream; what it makes for the first time it
        allocates memory for, which no capture allows.
        """
        if self._capture is not None and key not in self._warm:
            self._capture.broken = True
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        self._warm.add(key)

        def run() -> None:
            self._clock += seconds
            work()

        (self._queue if self._capture is None else self._capture.work).append(run)

    # -- streams, events, graphs

    def do_cuStreamCreate(self, stream: Any, flags: int) -> None:
        assert flags == 1, "a stream that waits for the null stream"
        stream._obj.value = self._new("stream")

    def do_cuStreamDestroy_v2(self, stream: Any) -> None:
        self._of(stream, "stream")
        del self.live[stream.value]

    def do_cuStreamSynchronize(self, stream: Any) -> None:
        self._of(stream, "stream")
        self._drain()

    def do_cuEventCreate(self, event: Any, flags: int) -> None:
        assert flags in (0, 2)
        event._obj.value = self._new(_Event(timed=flags == 0))

    def do_cuEventDestroy_v2(self, event: Any) -> None:
        self._of(event, _Event)
        del self.live[event.value]

    def do_cuEventRecord(self, event: Any, stream: Any) -> None:
        known = self._of(event, _Event)
        known.recorded, known.at = True, None

        def passed() -> None:
            known.at = self._clock

        self._ask(stream, passed)

    def do_cuEventSynchronize(self, event: Any) -> None:
        known = self._of(event, _Event)
        while known.recorded and known.at is None:
            self._queue.pop(0)()

    def do_cuEventElapsedTime(self, time: Any, first: Any, second: Any) -> None:
        a, b = self._of(first, _Event), self._of(second, _Event)
        if not (a.timed and b.timed and a.recorded and b.recorded):
            raise Refused(BAD_HANDLE)
        if a.at is None or b.at is None:
            raise Refused(NOT_READY)
        time._obj.value = 1e3 * (b.at - a.at)

    def do_cuStreamBeginCapture_v2(self, stream: Any, mode: int) -> None:
        self._of(stream, "stream")
        assert mode in (0, 1, 2)
        self._capture = _Graph()

    def do_cuStreamEndCapture(self, stream: Any, graph: Any) -> None:
        made, self._capture = self._capture, None
        if made is None:
            raise Refused(INVALID_VALUE)
        if made.broken:
            raise Refused(INVALIDATED)
        graph._obj.value = self._new(made)

    def do_cuGraphInstantiateWithFlags(self, made: Any, graph: Any, flags: Any) -> None:
        assert flags.value == 0
        made._obj.value = self._new(list(self._of(graph, _Graph).work))

    def do_cuGraphDestroy(self, graph: Any) -> None:
        self._of(graph, _Graph)
        del self.live[graph.value]

    def do_cuGraphExecDestroy(self, made: Any) -> None:
        self._of(made, list)
        del self.live[made.value]

    def do_cuGraphLaunch(self, made: Any, stream: Any) -> None:
        for work in self._of(made, list):
            self._ask(stream, work)


class FakeProducts:
    """Products by a vendor's library on a FakeCuda's stream: `makes` makes one when it happens."""

    def __init__(
        self, cuda: FakeCuda, makes: Callable[[Product], None], seconds: float = 1e-3
    ) -> None:
        self.cuda, self.makes, self.seconds = cuda, makes, seconds
        self.made: list[Product] = []

    def ready(self, product: Product) -> Callable[[], object]:
        def work() -> None:
            self.made.append(product)
            self.makes(product)

        return lambda: self.cuda.foreign(product, self.seconds, work)
