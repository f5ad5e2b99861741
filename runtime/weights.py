"""Weights on disk and in memory: one safetensors file, mapped.

The file is plain safetensors with two habits of ours: every tensor begins at a multiple of 64
bytes, and the gaps are tensors themselves (`__pad.N`, u8), because the format allows no holes.
"""

import json
import mmap
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np

from ..ir.plan import ALIGNMENT, TensorSpec, tensor_bytes
from .errors import ArtifactError
from .large_pages import has_large_pages, move_in_background
from .tensors import STORAGE, Array, aligned_bytes, place, storage_shape

PADDING = "__pad."
DELAY = 1.0
"""Seconds after which weights begin to move to large pages."""
STRETCH = 16 << 20
"""Bytes that are written at a time: the file's pages in memory are then large ones (2 MiB) where
the file system has such, and weights are read faster: 4-bit ones of a 1B model by a sixth (Zen 5).
"""
# Packed integers are stored as bytes: the plan says what they mean.
SAFETENSORS_DTYPES = {
    "f64": "F64", "f32": "F32", "f16": "F16", "bf16": "BF16", "f8e4m3": "F8_E4M3",
    "f8e5m2": "F8_E5M2", "i64": "I64", "i32": "I32", "i16": "I16", "i8": "I8", "u8": "U8",
    "bool": "BOOL", "i4": "U8", "u4": "U8", "i2": "U8",
}  # fmt: skip
_DTYPES = {
    theirs: ours for ours, theirs in SAFETENSORS_DTYPES.items() if ours not in ("i4", "u4", "i2")
}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file: dtype, shape in memory, and where its bytes begin and end."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Weights(Mapping[str, Array]):
    """The tensors of a mapped file, by name: bf16 and f8 as bits, every array aligned.

    The mapping is read-only and shared by all who open the file, until it is to `settle`. `moved`
    names tensors that a foreign file did not align: those are copied.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        with self.path.open("rb") as file:
            size = self.path.stat().st_size
            self.stored = read_header(file.read(8), file, size, self.path)
            self._map = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        with suppress(OSError):  # a kernel without large pages
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self._memory = np.frombuffer(self._map, np.uint8)
        self._mover: threading.Thread | None = None
        self.moved: list[str] = []
        self._arrays = {n: self._view(n, t) for n, t in self.stored.items() if not _is_padding(n)}

    def _view(self, name: str, tensor: StoredTensor) -> Array:
        if tensor.begin % ALIGNMENT == 0:
            return place(self._memory, tensor.begin, tensor.dtype, tensor.shape)
        self.moved.append(name)
        memory = aligned_bytes(tensor.end - tensor.begin)
        memory[:] = self._memory[tensor.begin : tensor.end]
        return place(memory, 0, tensor.dtype, tensor.shape)

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, without header and padding."""
        return sum(a.nbytes for a in self._arrays.values())

    def settle(self, room: int, *, wait: bool = False) -> None:
        """Move what lies on small pages to large ones, where `room` bytes of memory hold all of it.

        On a thread beside the kernels that read it, unless it is to `wait`; once for all callers.
        """
        if self._mover is None and self._memory.nbytes <= room and has_large_pages():
            delay = 0 if wait else DELAY
            self._mover = move_in_background(self._memory, self.path.name, delay)
        if wait and self._mover is not None:
            self._mover.join()

    def select(self, name: str, dtype: str, shape: tuple[int, ...]) -> Array:
        """The array called `name`, which must have this dtype (by its width) and shape."""
        if name not in self._arrays:
            raise ArtifactError(f"{self.path}: no weight {name!r}, which the plan reads")
        array, wanted = self._arrays[name], storage_shape(dtype, shape)
        if array.shape != wanted or array.dtype.itemsize != STORAGE[dtype].itemsize:
            given = self.stored[name]
            raise ArtifactError(
                f"{self.path}: weight {name!r} is {given.dtype}{list(given.shape)},"
                f" the plan wants {dtype}{list(shape)}"
            )
        return array.view(STORAGE[dtype])


def read_header(prefix: bytes, file: Any, size: int, path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file whose first 8 bytes are `prefix`; checks every extent."""
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > size - 8:
        raise ArtifactError(f"{path}: truncated: a header of {length} bytes in a file of {size}")
    try:
        header = cast("dict[str, Any]", json.loads(file.read(length)))
        header.pop("__metadata__", None)
        stored = {n: _stored(t, 8 + length) for n, t in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: the header is damaged: {error!r}") from None
    for name, tensor in stored.items():
        _check_extent(name, tensor, size, path)
    return stored


def _stored(tensor: dict[str, Any], base: int) -> StoredTensor:
    begin, end = tensor["data_offsets"]
    shape = tuple(int(d) for d in tensor["shape"])
    return StoredTensor(_DTYPES[tensor["dtype"]], shape, base + begin, base + end)


def _check_extent(name: str, tensor: StoredTensor, size: int, path: Path) -> None:
    wanted = tensor_bytes(tensor.dtype, tensor.shape)
    if tensor.end - tensor.begin != wanted:
        given = tensor.end - tensor.begin
        raise ArtifactError(f"{path}: weight {name!r} has {given} bytes, its shape wants {wanted}")
    if tensor.end > size:
        raise ArtifactError(
            f"{path}: truncated: weight {name!r} ends at {tensor.end}, the file at {size}"
        )


def _is_padding(name: str) -> bool:
    return name.startswith(PADDING)


class WeightsWriter:
    """Writes weights one at a time, in the order announced, so that no second one is in memory.

    A context manager; leaving it checks that all were written and flushes them to disk.
    """

    def __init__(self, path: Path, specs: Iterable[TensorSpec]) -> None:
        self.path = Path(path)
        self._specs = {spec.name: spec for spec in specs}
        self._pending = list(self._specs)
        self._file = self.path.open("wb", buffering=0)
        self._kept = bytearray()
        self._put(_header(self._specs.values()))

    def write(self, name: str, array: Array) -> None:
        """Append the next weight; its bytes are taken as they lie."""
        if not self._pending or name != self._pending[0]:
            wanted = self._pending[0] if self._pending else "nothing more"
            raise ValueError(f"{self.path}: given weight {name!r}, wanted {wanted!r}")
        spec, contiguous = self._specs[name], np.ascontiguousarray(array)
        size = tensor_bytes(spec.dtype, cast("tuple[int, ...]", spec.shape))
        if contiguous.nbytes != size:
            raise ValueError(
                f"{self.path}: weight {name!r} has {array.nbytes} bytes, wanted {size}"
            )
        self._put(contiguous.reshape(-1).view(np.uint8).data)
        self._put(bytes(-size % ALIGNMENT))
        self._pending.pop(0)

    def _put(self, content: bytes | memoryview) -> None:
        """Write whole stretches, and keep what is left of the last."""
        left = memoryview(content)
        while left:
            if not self._kept and len(left) >= STRETCH:
                taken = self._write(left[: len(left) // STRETCH * STRETCH])
            else:
                taken = min(STRETCH - len(self._kept), len(left))
                self._kept += left[:taken]
                if len(self._kept) == STRETCH:
                    self._flush()
            left = left[taken:]

    def _write(self, content: memoryview) -> int:
        """Write all of some bytes, a stretch at a time; gives how many they are."""
        for begin in range(0, len(content), STRETCH):
            stretch = content[begin : begin + STRETCH]
            while stretch:
                stretch = stretch[self._file.write(stretch) :]
        return len(content)

    def _flush(self) -> None:
        self._write(memoryview(bytes(self._kept)))
        self._kept.clear()

    def __enter__(self) -> "WeightsWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        with self._file:
            if error is None:
                self._flush()
        if error is None and self._pending:
            raise ValueError(f"{self.path}: never written: {', '.join(self._pending[:5])}")


def _header(specs: Iterable[TensorSpec]) -> bytes:
    tensors: dict[str, object] = {}
    position = 0
    for spec in specs:
        shape = storage_shape(spec.dtype, cast("tuple[int, ...]", spec.shape))
        size = tensor_bytes(spec.dtype, cast("tuple[int, ...]", spec.shape))
        tensors[spec.name] = _extent(SAFETENSORS_DTYPES[spec.dtype], shape, position, size)
        position += size
        if gap := -position % ALIGNMENT:
            tensors[f"{PADDING}{len(tensors)}"] = _extent("U8", (gap,), position, gap)
            position += gap
    text = json.dumps(tensors, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _extent(dtype: str, shape: tuple[int, ...], begin: int, size: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, begin + size]}
