"""The build report: what the passes did, what fused, what was left, how long each part took. Data
first, printed second.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from ..codegen.backend import KernelReport
from ..ir.dims import dim_text
from ..ir.plan import Plan

if TYPE_CHECKING:
    from .pipeline import Recorder

PACKAGES = ("ferrule", "torch", "transformers", "apache-tvm", "apache-tvm-ffi", "numpy")
# What runs in the generic template, and what would have had a template of its own.
_SLOW = {
    "linear": "packed_linear",
    "expert_linear": "packed_expert_linear",
    "matmul": "linear or attention",
}


class Clock:
    """Seconds of each part of a build."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time of the block to a part."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - begin
            self.seconds[name] = self.seconds.get(name, 0.0) + spent


def build_report(
    recorder: Recorder, reports: Mapping[str, KernelReport], plan: Plan, clock: Clock
) -> dict[str, Any]:
    """Passes, kernels with their costs as formulas of the dims, fused and left ops, seconds."""
    used = {r.function: r for r in reports.values()}
    return {
        "passes": recorder.records,
        "kernels": {name: _kernel(report) for name, report in used.items()},
        "fused": [f"{n}: {r.ops}" for n, r in used.items() if "+" in r.ops],
        "left": left_slow(plan),
        "calls": {name: len(entry.calls) for name, entry in plan.entries.items()},
        "seconds": {name: round(s, 3) for name, s in clock.seconds.items()},
    }


def left_slow(plan: Plan) -> list[str]:
    """The calls that run a contraction in the generic template, each with the model's line."""
    found: dict[str, None] = {}
    for entry in plan.entries.values():
        for call in entry.calls:
            slow = [op for op in call.ops.split("+") if op in _SLOW]
            for op in slow:
                found[f"{op} is not {_SLOW[op]}: {call.kernel} ({call.origin})"] = None
    return list(found)


def _kernel(report: KernelReport) -> dict[str, Any]:
    cost = report.cost
    return {
        "template": report.template,
        "ops": report.ops,
        "reads": [dim_text(d) for d in cost.reads],
        "writes": dim_text(cost.bytes_written),
        "operations": {dtype: dim_text(d) for dtype, d in cost.by_dtype.items()},
        "choices": {bucket: dict(c.values) for bucket, c in report.choices.items()},
    }


def versions() -> dict[str, str]:
    """The versions of what built an artifact."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
