"""Places in one workspace: buffers that live at different times share bytes.

    calls      0    1    2    3    4
    a 128 B    |----|                     at 0
    b  64 B         |---------|           at 128
    c 128 B              |--------->      at 0, where a was

Greedy by size, best fit: the largest buffer first, each in the smallest gap between those that live
at the same time (Pisarchyk and Lee, "Efficient memory management for deep neural net inference",
2020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ALIGNMENT = 64  # bytes: whole cache lines, whole vector registers


@dataclass(frozen=True)
class Buffer:
    """Bytes that are needed from call `first` to call `last`, both included."""

    name: int
    size: int
    first: int
    last: int

    @property
    def aligned(self) -> int:
        """The size rounded up to whole lines; an empty buffer has a line, so that its place is its
        own.
        """
        return max(1, -(-self.size // ALIGNMENT)) * ALIGNMENT

    def meets(self, other: Buffer) -> bool:
        """Whether both are needed at the same time."""
        return self.first <= other.last and other.first <= self.last


def place_buffers(buffers: Sequence[Buffer]) -> tuple[Mapping[int, int], int]:
    """The offset of each buffer by name, and the bytes of the workspace."""
    placed: list[tuple[int, Buffer]] = []
    for buffer in sorted(buffers, key=lambda b: (-b.aligned, b.first, b.name)):
        taken = sorted((at, at + other.aligned) for at, other in placed if other.meets(buffer))
        placed.append((_best_gap(taken, buffer.aligned), buffer))
    size = max((at + b.aligned for at, b in placed), default=0)
    return {b.name: at for at, b in placed}, size


def _best_gap(taken: list[tuple[int, int]], size: int) -> int:
    """The start of the smallest gap that fits, else of what lies behind all."""
    end, best, spare = 0, -1, 0
    for start, stop in taken:
        gap = start - end
        if gap >= size and (best < 0 or gap < spare):
            best, spare = end, gap
        end = max(end, stop)
    return best if best >= 0 else end
