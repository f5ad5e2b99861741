"""Aligned memory and the tensors that kernels see in it."""

import ctypes
import mmap
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Any

import numpy as np

from ..ir.plan import ALIGNMENT, DTYPE_BITS, tensor_bytes
from .ffi import tvm_ffi

Array = np.ndarray[Any, np.dtype[Any]]
LARGE_PAGE = 2 << 20
"""Bytes of a large page (x86-64)."""

# What a kernel's buffer is declared as. bf16 and f8 cross the border as bits, packed integers as
# bytes.
STORAGE: dict[str, np.dtype[Any]] = {
    name: np.dtype(storage)
    for name, storage in {
        "f64": "f8", "f32": "f4", "f16": "f2", "bf16": "u2", "f8e4m3": "u1", "f8e5m2": "u1",
        "i64": "i8", "i32": "i4", "i16": "i2", "i8": "i1", "u8": "u1", "bool": "u1",
        "i4": "u1", "u4": "u1", "i2": "u1",
    }.items()
}  # fmt: skip


def aligned_bytes(size: int) -> Array:
    """`size` zero bytes that begin at a multiple of 64; pages are taken when first written."""
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size]


def storage_shape(dtype: str, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape in memory: packed dtypes hold several values a byte along the last dim."""
    per_byte = 8 // DTYPE_BITS[dtype] if DTYPE_BITS[dtype] < 8 else 1
    if per_byte == 1 or not shape:
        return tuple(shape)
    return (*shape[:-1], -(-shape[-1] // per_byte))


def place(memory: Array, offset: int, dtype: str, shape: Sequence[int]) -> Array:
    """An array of `dtype` and `shape` at byte `offset` of `memory`, sharing it."""
    return np.ndarray(storage_shape(dtype, shape), STORAGE[dtype], memory, offset)


def allocate(dtype: str, shape: Sequence[int]) -> Array:
    """A new aligned array of zeros."""
    return place(aligned_bytes(tensor_bytes(dtype, shape)), 0, dtype, shape)


def allocate_together(specs: Sequence[tuple[str, Sequence[int]]]) -> list[Array]:
    """New aligned arrays of zeros, (dtype, shape) each, side by side in memory of large pages where
    the machine has them: apart, each begins and ends with small ones.
    """
    sizes = [-(-tensor_bytes(dtype, shape) // ALIGNMENT) * ALIGNMENT for dtype, shape in specs]
    memory = _large_bytes(sum(sizes))
    offsets = accumulate(sizes, initial=0)
    return [place(memory, at, *spec) for at, spec in zip(offsets, specs, strict=False)]


def _large_bytes(size: int) -> Array:
    """`size` zero bytes that begin at a large page."""
    raw = mmap.mmap(-1, size + LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without large pages
        raw.madvise(mmap.MADV_HUGEPAGE)
    memory = np.frombuffer(raw, np.uint8)
    start = -memory.ctypes.data % LARGE_PAGE
    return memory[start : start + size]


def release(array: Array) -> None:
    """Give the whole pages of an array of `allocate` back to the machine: they are zeros, and taken
    again when they are written.
    """
    page, address = mmap.PAGESIZE, array.ctypes.data
    first, end = -(-address // page) * page, (address + array.nbytes) // page * page
    if end <= first:
        array[...] = 0
        return
    flat = array.reshape(-1).view(np.uint8)
    flat[: first - address] = flat[end - address :] = 0
    advise(first, end - first, mmap.MADV_DONTNEED)


def advise(address: int, size: int, advice: int) -> None:
    """madvise(2) of some pages. Raises OSError where the machine does not take the advice."""
    call = ctypes.CDLL(None, use_errno=True).madvise
    call.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if call(address, size, advice) != 0:
        raise OSError(ctypes.get_errno(), f"madvise of {size} bytes")


class _Lent:
    """Memory that numpy holds read-only, made writable in name, because DLPack lends no other.

    Mapped weights keep their protection: a kernel that wrote to one would end the process.
    """

    def __init__(self, array: Array) -> None:
        self.array = array  # keeps the memory
        address = (array.ctypes.data, False)
        self.__array_interface__ = {**array.__array_interface__, "data": address}


def to_tensor(array: Array) -> tvm_ffi.Tensor:
    """The array as a kernel argument, sharing memory; it must begin at a multiple of 64 bytes.

    Kernels load whole vectors from aligned addresses: an array that is not aligned ends the
    process.
    """
    if not array.flags.writeable:
        array = np.asarray(_Lent(array))
    return tvm_ffi.from_dlpack(array, require_alignment=ALIGNMENT, require_contiguous=True)
