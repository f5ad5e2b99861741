"""What running on a GPU asks of whoever drives it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ...ir.launches import Binary, Launch
from ..tensors import Array


class Given(NamedTuple):
    """An argument of a launch: an address, with the dtype of what lies there, or a whole number
    (dtype "").
    """

    value: int
    dtype: str


@dataclass(frozen=True)
class Prepared:
    """A launch ready to run: its binary, the grid, the arguments in order, and the address of what
    the binary has for its own ends, 0 for nothing. Where `product` is given, the arguments are the
    three matrices of a product of so many rows, columns and so much depth.
    """

    source: str
    launch: Launch
    grid: tuple[int, int, int]
    arguments: tuple[Given, ...]
    workspace: int = 0
    product: tuple[int, int, int] | None = None


class Driver(Protocol):
    """A device: its memory by address, kernels loaded and launched in order on one stream."""

    name: str

    def free_bytes(self) -> int:
        """Memory of the device that nobody holds."""
        ...

    def allocate(self, size: int) -> int:
        """The address of so many bytes, a multiple of 256."""
        ...

    def release(self, address: int) -> None:
        """Give memory back."""
        ...

    def write(self, address: int, data: Array) -> None:
        """Copy contiguous host memory to the device; done by the time a later launch runs."""
        ...

    def upload(self, parts: Iterable[tuple[int, Array]]) -> None:
        """Copy much host memory to addresses, one contiguous array after another; done when this
        returns.
        """
        ...

    def read(self, address: int, data: Array) -> None:
        """Copy device memory to host memory; done by the time `synchronize` returns, or `wait` for
        a later mark.
        """
        ...

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy inside the device."""
        ...

    def host(self, size: int) -> Array:
        """So many bytes of host memory that the device copies to and from fast."""
        ...

    def load(self, binaries: Sequence[tuple[str, Binary, bytes]]) -> None:
        """Load machine code, by name."""
        ...

    def pack(self, launches: Sequence[Prepared]) -> object:
        """Launches made ready to run again and again."""
        ...

    def run(self, packed: object) -> None:
        """Launch what `pack` gave, one after another."""
        ...

    def time(self, groups: Sequence[object]) -> list[float]:
        """Launch what `pack` or `record` gave, group after group; gives the seconds that the device
        takes for each.
        """
        ...

    def record(self, packed: object, times: int = 1) -> object:
        """What `pack` gave, so many times, as one thing that can be run again and again."""
        ...

    def replay(self, recorded: object) -> None:
        """Run what was recorded."""
        ...

    def mark(self, mark: object = None) -> object:
        """A mark behind all that was asked for so far; an old one moves there."""
        ...

    def wait(self, mark: object) -> None:
        """Wait until all before a mark is done."""
        ...

    def synchronize(self) -> None:
        """Wait until all is done."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...
