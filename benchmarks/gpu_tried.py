"""Sections that try other choices of kernels: single linears with all that the cost model leaves,
and a whole artifact tuned as `ferrule tune` does.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ferrule.codegen.space import DEFAULT, Choice, Sample
from ferrule.compiler.device_trial import DeviceTrial
from ferrule.compiler.devices import device_named
from ferrule.compiler.measurer import trial_request
from ferrule.compiler.retune import tune_artifact
from ferrule.compiler.trial_requests import Asked
from ferrule.compiler.tune_tasks import Task, tunable_of
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.ops import quantized as q
from ferrule.ir.plan import Argument
from ferrule.ir.target import Target

from . import gpu_kernels as alone
from .gpu_worker import Line

if TYPE_CHECKING:
    from .gpu_bench import Bench

BUDGET = 60.0
"""Seconds to tune an artifact for."""
ROUNDS = 5
GROUP = 128


class Tried(NamedTuple):
    """A linear of so many rows by w[columns, depth], of 16 bits or by codes of 4."""

    rows: int
    columns: int
    depth: int
    bits: int = 16


AT = (
    *(Tried(r, 4096, 14336) for r in (1, 32, 128, 2048)),
    *(Tried(r, 6144, 4096) for r in (1, 32, 128, 2048)),
    *(Tried(r, 4096, 14336, 4) for r in (1, 16, 32, 2048)),
)


def text_of(at: Tried) -> str:
    """A linear by its sizes."""
    return f"{at.rows}x{at.columns}x{at.depth} of {at.bits} bits"


def task_of(at: Tried, target: Target) -> Task:
    """The form of the linear that serves its rows, as tuning takes it."""
    body, arguments = _dense(at) if at.bits == 16 else _coded(at)
    made = tunable_of(body, target)
    assert made is not None, f"nothing may be chosen in {text_of(at)}"
    space = next(s for s in made.spaces if s.bucket.high is None or at.rows <= s.bucket.high)
    bounds = dict(made.body.bounds)
    return Task("linear", "linear", 1, made, space, (Sample(at.rows),), arguments, bounds, 16, 1)


def _dense(at: Tried) -> tuple[Graph, tuple[Argument, ...]]:
    weight = Argument("weight", "w", 0, "bf16", (at.columns, at.depth))
    return alone.linear_body(at.columns, at.depth, max(at.rows, 512)), _around(at, weight)


def _coded(at: Tried) -> tuple[Graph, tuple[Argument, ...]]:
    groups = (at.columns, at.depth // GROUP)
    x = alone.given("x", "bf16", dim("T"), at.depth)
    codes, scale = alone.given("q", "u4", *groups, GROUP), alone.given("s", "bf16", *groups)
    y = q.quantized_linear(x, codes, scale, offset=8)
    given = (Argument("weight", "q", 0, "u4", (*groups, GROUP)),
             Argument("weight", "s", 0, "bf16", groups))  # fmt: skip
    bounds = {"T": (1, max(at.rows, 512))}
    return Graph("kernel", (x, codes, scale), (y,), bounds=bounds), _around(at, *given)


def _around(at: Tried, *weights: Argument) -> tuple[Argument, ...]:
    x = Argument("workspace", None, 0, "bf16", ("T", at.depth))
    return (x, *weights, Argument("workspace", None, 0, "bf16", ("T", at.columns)))


def choices(bench: Bench, at: Tried) -> Iterator[Line]:
    """Every choice that the model leaves for a linear, timed as tuning does: first templates and
    tiles, then how deep and by how many warps the best of them goes.
    """
    target = Target.parse(f"cuda:{bench.arch}")
    task, machine = task_of(at, target), device_named(None, bench.arch)
    taken: dict[Choice, float] = {}
    faults: list[str] = []
    for found in (task.candidates(machine), None):
        best = min(taken, key=taken.__getitem__, default=DEFAULT)
        tried = (DEFAULT, *(task.refined(best, machine) if found is None else found))
        times, wrong = _timed(bench, task, target, tried, at.rows)
        taken = times | taken
        faults += wrong
    words = {c: task.space.words(c if c.values else task.space.default) for c in taken}
    own, best = taken[DEFAULT], min(taken, key=taken.__getitem__)
    yield {
        "linear": text_of(at), "own": words[DEFAULT], "seconds": own, "best": words[best],
        "best_seconds": taken[best], "times_own": own / taken[best], "faults": faults,
        "microseconds": {words[c]: round(1e6 * s, 2) for c, s in taken.items() if c.values},
    }  # fmt: skip


def _timed(
    bench: Bench, task: Task, target: Target, tried: tuple[Choice, ...], rows: int
) -> tuple[dict[Choice, float], list[str]]:
    with tempfile.TemporaryDirectory(prefix="ferrule-tried-") as folder:
        asked = Asked.of(trial_request(task, target, Path(folder)))
        trial = DeviceTrial(asked, bench.machine.opened)
        try:
            faults = trial.compile(dict(enumerate(tried)))
            good = [at for at in range(len(tried)) if at not in faults]
            times = trial.times(good, Sample(rows), {"T": rows}, ROUNDS, lambda _: None)
        finally:
            trial.close()
    found = {tried[at]: statistics.median(t) for at, t in zip(good, times, strict=True)}
    return found, [f"{task.space.words(tried[at])}: {why}" for at, why in faults.items()]


def tune(bench: Bench, name: str) -> Iterator[Line]:
    """The model's artifact, tuned: what won for each form that the budget reached."""
    bench.build()
    place = bench.place(name)
    if not place.exists():
        shutil.copytree(bench.place(), place, copy_function=os.link)
    records = bench.folder / "records.jsonl"
    report = tune_artifact(place, BUDGET, records, show_progress=False)
    for line in report.lines:
        yield {
            "kernel": line.kernel, "ops": line.ops, "rows": line.bucket, "at": line.tokens,
            "seconds": line.default_seconds, "best_seconds": line.seconds, "gain": line.gain,
            "choice": line.choice,
        }  # fmt: skip
    yield {"seconds": report.seconds, "timings": report.measurements, "left": len(report.left),
           "faults": report.faults[:8]}  # fmt: skip
