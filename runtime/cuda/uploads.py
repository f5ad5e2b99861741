"""Weights to a device: threads fill page-locked memory, whose copies the device takes by itself.

A copy out of ordinary memory goes through one thread and the driver's own buffers; reading a mapped
file of many gigabytes, page by page, is most of the start of an artifact.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from ..tensors import Array

if TYPE_CHECKING:
    from .device import CudaDevice

PIECE = 16 << 20
THREADS = 6


class _Buffer:
    """Page-locked memory, and the mark behind its last copy."""

    def __init__(self, memory: Array) -> None:
        self.memory = memory
        self.mark: object = None


def upload(
    device: "CudaDevice",
    parts: Iterable[tuple[int, Array]],
    piece: int = PIECE,
    threads: int = THREADS,
) -> None:
    """Copy contiguous arrays to addresses, in pieces; all are on their way when this returns, and
    the page-locked memory is given back.
    """
    buffers = [_Buffer(device.host(piece)) for _ in range(2 * threads)]
    free = deque(buffers)
    filled: deque[tuple[Future[None], _Buffer, int, int]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for address, data in _pieces(parts, piece):
            if not free:
                free.append(_sent(device, *filled.popleft()))
            buffer = free.popleft()
            if buffer.mark is not None:
                device.wait(buffer.mark)
            into = buffer.memory[: data.nbytes]
            filled.append((pool.submit(np.copyto, into, data), buffer, address, data.nbytes))
        while filled:
            _sent(device, *filled.popleft())
    device.synchronize()
    for buffer in buffers:
        device.unlock(buffer.memory)


def _sent(
    device: "CudaDevice", filling: Future[None], buffer: _Buffer, address: int, size: int
) -> _Buffer:
    filling.result()
    device.write(address, buffer.memory[:size])
    buffer.mark = device.mark(buffer.mark)
    return buffer


def _pieces(parts: Iterable[tuple[int, Array]], piece: int) -> Iterator[tuple[int, Array]]:
    for address, array in parts:
        flat = array.reshape(-1).view(np.uint8)
        for begin in range(0, flat.nbytes, piece):
            yield address + begin, flat[begin : begin + piece]
