"""The kernels of a step that was just run, beside what the machine allows: for who watches."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..ir.plan import Plan
from .costs import NO_TRAFFIC, Dims, Machine, Traffic, limits, operations_of, sizes_of, traffic_of


@dataclass(frozen=True)
class StepSample:
    """A step that was timed call by call: its entry, its dims, and seconds in the calls' order.

    Beside the plan's dims: C, the blocks of its sequences, Z, their recurrent states where the
    model has any, and L, the mean of their tokens.
    """

    entry: str
    dims: Dims
    seconds: Sequence[float]


@dataclass(frozen=True)
class _Kernel:
    kernel: str
    template: str
    ops: str
    count: int = 0
    seconds: float = 0.0
    traffic: Traffic = NO_TRAFFIC
    limit: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "kernel": self.kernel,
            "template": self.template,
            "ops": self.ops,
            "count": self.count,
            "seconds": self.seconds,
            "bytes": self.traffic.total,
            "limit": self.limit,
            "share": _share(self.limit, self.seconds),
        }


def kernel_report(
    plan: Plan, manifest: Mapping[str, Any], sample: StepSample, machine: Machine | None
) -> dict[str, Any]:
    """A sampled step by names, the kernels that took longest first.

    `limit` is what the machine's rates allow, in seconds, `share` the limit over the time taken;
    None where the machine was not measured.
    """
    lines = sorted(_lines(plan, manifest, sample, machine), key=lambda line: -line.seconds)
    seconds = sum(line.seconds for line in lines)
    known = [line.limit for line in lines if line.limit is not None]
    limit = sum(known) if len(known) == len(lines) else None
    return {
        "entry": sample.entry,
        "dims": dict(sample.dims),
        "seconds": seconds,
        "bytes": sum(line.traffic.total for line in lines),
        "limit": limit,
        "share": _share(limit, seconds),
        "kernels": [line.to_json() for line in lines],
    }


def _lines(
    plan: Plan, manifest: Mapping[str, Any], sample: StepSample, machine: Machine | None
) -> Iterator[_Kernel]:
    kernels = manifest.get("report", {}).get("kernels", {})
    found: dict[str, _Kernel] = {}
    for call, seconds in zip(plan.entries[sample.entry].calls, sample.seconds, strict=True):
        known = kernels.get(call.kernel, {})
        sizes = sizes_of(call, sample.dims)
        traffic = traffic_of(known, call, sizes)
        before = found.get(call.kernel) or _Kernel(
            call.kernel, str(known.get("template", call.label)), call.ops or ""
        )
        limit = before.limit
        if machine is not None:
            limit = (limit or 0.0) + max(limits(traffic, operations_of(known, sizes), machine))
        found[call.kernel] = _Kernel(
            before.kernel,
            before.template,
            before.ops,
            before.count + 1,
            before.seconds + seconds,
            before.traffic + traffic,
            limit,
        )
    yield from found.values()


def _share(limit: float | None, seconds: float) -> float | None:
    return limit / seconds if limit is not None and seconds else None
