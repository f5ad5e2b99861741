"""`ferrule plan`: the memory that an artifact takes, to the byte, read from its plan and from no
weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ..ir.plan import Plan, tensor_bytes
from ..runtime.errors import ArtifactError
from ..runtime.executor import available_memory
from ..runtime.manifest import read_manifest
from ..runtime.report import PlanReport, plan_report

LENGTHS = (128, 512, 2048, 8192, 32768, 131072)


@dataclass(frozen=True)
class Memory:
    """The runtime's report, the bytes of a step's inputs and results, caches (name, entry, bytes of
    a token or, where the last is true, of a sequence), and how many sequences of a length fit.
    """

    report: PlanReport
    step_bytes: int
    caches: tuple[tuple[str, str, int, bool], ...]
    fitting: Mapping[int, int]

    @property
    def total_bytes(self) -> int:
        """Everything that serving allocates or maps."""
        return self.report.total_bytes + self.step_bytes

    def to_json(self) -> dict[str, object]:
        """The figures by name."""
        rest = {"step_bytes": self.step_bytes, "total_bytes": self.total_bytes}
        caches = [
            {"name": n, "entry": e, "state_bytes" if state else "token_bytes": b}
            for n, e, b, state in self.caches
        ]
        return {**asdict(self.report), **rest, "caches": caches, "fitting": dict(self.fitting)}

    def __str__(self) -> str:
        rows = [("inputs and results of a step", f"{self.step_bytes:,} bytes")]
        rows += [("total with them", f"{self.total_bytes:,} bytes")]
        rows += [(f"sequences of {n:,} tokens that fit", f"{c:,}") for n, c in self.fitting.items()]
        rows += [
            (f"{'state' if state else 'cache'} {n}", f"{e}, {b:,} bytes a {_owner(state)}")
            for n, e, b, state in self.caches
        ]
        return "\n".join([str(self.report), *(f"{name:<36}{value}" for name, value in rows)])


def read_memory(folder: Path, budget: int | None = None) -> Memory:
    """The memory of an artifact under a budget in bytes for everything; without one, as the
    runtime would choose.

    Raises ArtifactError where the budget does not hold the weights, the workspace and one block
    of cache.
    """
    manifest = read_manifest(folder)
    plan = Plan.from_json((Path(folder) / "plan.json").read_bytes())
    fixed = plan.weight_bytes + plan.workspace_bytes + step_bytes(plan)
    least = plan.block_bytes + plan.state_bytes
    if budget is not None and budget < fixed + least:
        raise ArtifactError(
            f"{folder}: a budget of {budget:,} bytes holds no sequence: weights, workspace and a "
            f"step take {fixed:,}, a block of cache {plan.block_bytes:,}"
            + (f", a state {plan.state_bytes:,}" if plan.state_bytes else "")
        )
    cache = None if budget is None else budget - fixed
    report = plan_report(plan, manifest, cache, available_memory())
    lengths = [n for n in LENGTHS if n < report.max_context] + [report.max_context] * bool(
        plan.caches
    )
    caches = tuple(
        (c.name, f"{c.dtype}{list(c.entry)}", c.entry_bytes, c.state) for c in plan.caches
    )
    fitting = {n: plan.sequences_that_fit(report.cache_bytes, n) for n in lengths}
    return Memory(report, step_bytes(plan), caches, fitting)


def _owner(state: bool) -> str:
    return "sequence" if state else "token"


def step_bytes(plan: Plan) -> int:
    """Bytes of the largest step's inputs and results."""
    specs = {
        spec.name: spec
        for entry in plan.entries.values()
        for kind in ("input", "result")
        for spec in entry.signature(kind)
    }
    return sum(tensor_bytes(s.dtype, plan.largest(s.shape)) for s in specs.values())
