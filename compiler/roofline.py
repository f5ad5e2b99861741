"""What a kernel or a step takes beside what the machine allows: bytes, operations, bound, ratio."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..runtime.costs import NO_TRAFFIC, Dims, Traffic, limits
from .devices import BinaryLine
from .hardware import Hardware


@dataclass(frozen=True)
class KernelLine:
    """One kernel of an entry: `count` calls in a step; bytes, operations and seconds are those of
    all its calls.

    Operations are by the dtype of what is multiplied, a multiply-add counted as two. `seconds` is
    None where nothing was measured; `reading` and `computing` are the seconds that the machine's
    measured bandwidth and peaks allow, None where the machine was not asked.
    """

    kernel: str
    template: str
    ops: str
    origin: str
    count: int = 0
    traffic: Traffic = NO_TRAFFIC
    operations: Mapping[str, int] | None = None
    seconds: float | None = None
    reading: float | None = None
    computing: float | None = None

    @property
    def nbytes(self) -> int:
        """Bytes moved."""
        return self.traffic.total

    @property
    def work(self) -> int:
        """Operations of all dtypes."""
        return sum((self.operations or {}).values())

    @property
    def limit(self) -> float | None:
        """Seconds that neither reading nor computing can go below."""
        return None if self.reading is None else max(self.reading, self.computing or 0.0)

    @property
    def bound(self) -> str | None:
        """What the limit comes from: memory or compute."""
        return _bound(self.reading, self.computing)

    @property
    def ratio(self) -> float | None:
        """The limit as a share of the time measured."""
        return self.limit / self.seconds if self.limit and self.seconds else None

    def on(self, machine: Hardware | None) -> KernelLine:
        """The line with the times that a machine allows."""
        if machine is None:
            return self
        reading, computing = limits(self.traffic, self.operations or {}, machine)
        return replace(self, reading=reading, computing=computing)

    def to_json(self) -> dict[str, Any]:
        """The line by names."""
        return {
            "kernel": self.kernel,
            "template": self.template,
            "ops": self.ops,
            "origin": self.origin,
            "count": self.count,
            "bytes": self.nbytes,
            "weight_bytes": self.traffic.weights,
            "cache_bytes": self.traffic.caches,
            "operations": dict(self.operations or {}),
        } | _times(self)


@dataclass(frozen=True)
class StepLines:
    """The kernels of one entry's step, in the order of first use, for steps of these dims."""

    entry: str
    dims: Dims
    kernels: tuple[KernelLine, ...]

    @property
    def count(self) -> int:
        """Kernel calls."""
        return sum(k.count for k in self.kernels)

    @property
    def traffic(self) -> Traffic:
        """Bytes moved by all kernels."""
        return sum((k.traffic for k in self.kernels), start=Traffic())

    @property
    def work(self) -> int:
        """Operations of all kernels."""
        return sum(k.work for k in self.kernels)

    @property
    def seconds(self) -> float | None:
        """Time measured, all kernels one after another."""
        return _sum(k.seconds for k in self.kernels)

    @property
    def limit(self) -> float | None:
        """The sum of the kernels' limits."""
        return _sum(k.limit for k in self.kernels)

    @property
    def bound(self) -> str | None:
        """What most of the limit comes from: memory or compute."""
        return _bound(*(_sum(k.limit for k in self.kernels if k.bound == b) for b in BOUNDS))

    @property
    def ratio(self) -> float | None:
        """The limit as a share of the time measured."""
        return self.limit / self.seconds if self.limit and self.seconds else None

    def to_json(self) -> dict[str, Any]:
        """The step by names, with its total."""
        total = {"count": self.count, "bytes": self.traffic.total}
        total |= {"weight_bytes": self.traffic.weights, "cache_bytes": self.traffic.caches}
        return {
            "entry": self.entry,
            "dims": dict(self.dims),
            "total": total | {"operations": self.work} | _times(self),
            "kernels": [k.to_json() for k in self.kernels],
        }


@dataclass(frozen=True)
class Explanation:
    """The steps of an artifact, the machine that they were measured on or are held against, if
    there is one, and the machine code of a GPU's.
    """

    name: str
    steps: tuple[StepLines, ...]
    machine: Hardware | None = None
    binaries: tuple[BinaryLine, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Everything by names."""
        machine = self.machine and {
            "fingerprint": self.machine.fingerprint,
            "read_bandwidth": self.machine.read_bandwidth,
            "cache_bandwidth": self.machine.cache_bandwidth,
            "peak": dict(self.machine.peak),
        }
        return {
            "model": self.name,
            "machine": machine,
            "steps": [step.to_json() for step in self.steps],
            "binaries": [asdict(line) for line in self.binaries],
        }


BOUNDS = ("memory", "compute")


def _bound(memory: float | None, compute: float | None) -> str | None:
    if memory is None and compute is None:
        return None
    return BOUNDS[(compute or 0.0) > (memory or 0.0)]


def _sum(times: Iterable[float | None]) -> float | None:
    known = [t for t in times if t is not None]
    return sum(known) if known else None


def _times(line: KernelLine | StepLines) -> dict[str, Any]:
    return {
        "seconds": line.seconds,
        "limit": line.limit,
        "bound": line.bound,
        "ratio": line.ratio,
    }
