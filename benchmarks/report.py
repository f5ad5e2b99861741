"""The lines of a report: a Markdown table of all that was measured, and what stands beside it."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ferrule.compiler.hardware import Hardware
from ferrule.ir.target import Host

from .cases import Case, Shape, need
from .limits import MULTIPLIED_IN
from .rounds import Figures


@dataclass(frozen=True)
class Group:
    """One shape in one format: the figures of its stacks, and the limits that they are held
    against, by target.
    """

    shape: str
    sizes: Shape
    form: str
    rounds: int
    limits: Mapping[str, Hardware]
    figures: Sequence[Figures]

    def share(self, figures: Figures, case: Case) -> float:
        """The least time that a round can take on this machine over the time that it took."""
        stack = figures.installed.stack
        needed = need(case, self.sizes, stack.layouts[self.form], stack.kv_bits, self.rounds)
        limit = self.limits[stack.target].seconds(
            needed.bytes, needed.operations, MULTIPLIED_IN[self.form]
        )
        return limit / figures.seconds[case.name]


def heading(threads: int, rounds: int) -> str:
    """The machine and how it is measured."""
    return (
        f"{Host().model()} ({platform.machine()}), {threads} threads, {time.strftime('%F')}; "
        f"medians of {rounds}, tokens a second and the share of the limit"
    )


def table_head(cases: Sequence[Case]) -> list[str]:
    """The head of the table."""
    names = ["format", "stack", *(case.name for case in cases), "cold start", "peak memory"]
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def table_rows(group: Group, cases: Sequence[Case]) -> list[str]:
    """A row for each stack: what failed is a dash here and is told by name beside the table."""
    lines: list[str] = []
    for figures in group.figures:
        cells = [group.form, figures.name]
        cells += [_rate(group, figures, case) for case in cases]
        cells.append("-" if figures.cold is None else f"{figures.cold:.2f} s")
        peak = figures.peak_bytes
        cells.append("-" if peak is None else f"{peak / 2**30:.2f} GiB")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _rate(group: Group, figures: Figures, case: Case) -> str:
    seconds = figures.seconds.get(case.name)
    if seconds is None:
        return "-"
    return f"{case.tokens / seconds:.1f} ({group.share(figures, case):.0%})"


def progress(all_: Sequence[Figures], case: Case) -> str:
    """One line of a case just measured: tokens a second by stack."""
    rates = [
        f"{f.name} {case.tokens / f.seconds[case.name]:.1f}" for f in all_ if case.name in f.seconds
    ]
    return f"{case.name}: {', '.join(rates)}"


def notes(group: Group) -> list[str]:
    """What each stack said of itself, what making its model took, and failures by name."""
    lines: list[str] = []
    for figures in group.figures:
        details = "; ".join(f"{k} {v}" for k, v in figures.said.get("details", {}).items())
        lines.append(f"{figures.name} ({group.form}): {details}")
        if figures.model.seconds is not None:
            peak = figures.model.peak_bytes
            took = f", peak {peak / 2**30:.2f} GiB" if peak else ""
            lines.append(f"  its model was made in {figures.model.seconds:.1f} s{took}")
        if figures.failure:
            lines.append(f"  FAILED: {figures.failure}")
    return lines


def as_json(group: Group) -> dict[str, Any]:
    """Everything that was measured, run by run."""
    return {
        "shape": group.shape,
        "format": group.form,
        "limits": {
            name: {"read_bandwidth": h.read_bandwidth, "peak": h.peak}
            for name, h in group.limits.items()
        },
        "stacks": {
            f.name: {
                "runs": f.runs,
                "seconds": f.seconds,
                "cold": f.cold,
                "peak_bytes": f.peak_bytes,
                "said": dict(f.said),
                "failure": f.failure,
            }
            for f in group.figures
        },
    }
