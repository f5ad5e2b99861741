"""`ferrule tune`: tunes the kernels of an artifact, which is then built anew with what won, or
those of a model, for whoever compiles it afterwards.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ..codegen.backend import KernelBody, KernelReport, backend_of
from ..codegen.space import DEFAULT
from ..ir.launches import LAUNCHES
from ..ir.plan import Plan
from ..ir.target import Target
from ..passes.plan_memory import plan_memory
from ..runtime.artifact import KERNELS, PLAN, Artifact, load
from ..runtime.manifest import MANIFEST, check_files, read_manifest, write_manifest
from .budget import Budget, Seconds
from .build import (
    Kernels,
    Options,
    in_folder,
    limits_of,
    serve,
    step_of,
    target_of,
    write_binaries,
    write_library,
    write_plan,
)
from .console import Progress, progress
from .devices import device_here
from .errors import CompileError
from .hardware import Hardware, hardware
from .measurer import Workers
from .models import open_model
from .pipeline import Recorder, grouping
from .records import Records, read_records, write_records
from .report import Clock
from .tune import Measurers, TuneReport, tune_tasks
from .tune_tasks import Task, tasks_of
from .tuning import TUNING, chosen, tuned, write_records_of

FOLDER = "kernels"
_KEPT_OUT = (KERNELS, PLAN, LAUNCHES, TUNING)
"""Files that are written anew, and those in the folder of a GPU's kernels."""


def is_artifact(place: str | Path) -> bool:
    """Whether a place is an artifact's directory."""
    return (Path(place) / MANIFEST).is_file()


def tune_artifact(
    folder: Path,
    budget: float,
    records: Path,
    *,
    show_progress: bool = True,
    measurers: Measurers | None = None,
    clock: Seconds = time.monotonic,
) -> TuneReport:
    """Tune an artifact's kernels and build them anew, in place, whole or not at all, with what the
    records then hold, all in so many seconds; after a Ctrl-C the records alone have changed.

    For building anew as many seconds are kept as the artifact says that its kernels took. Where no
    choice is another than it has, nothing is compiled.

    Raises CompileError where this version would not make the artifact's plan.
    """
    spent = Budget(budget, clock)
    artifact = _opened(folder)
    spent.kept = _kernel_seconds(artifact)
    target = artifact_target(artifact)
    _take_in(records, read_records(artifact.path / TUNING))
    plan, bodies = kernels_of(artifact, target)
    with progress(show_progress) as shown:
        shown.stage("measure the machine", 1)
        machine = _machine_of(target, records)
        tasks = tasks_of(plan, bodies, target)
        report = _tuned(tasks, target, machine, records, spent, shown, measurers)
        if not report.interrupted:
            shown.stage("kernels", 1)
            _take_up(artifact, plan, bodies, tasks, target, machine, read_records(records))
    report.seconds = spent.spent
    return report


def _kernel_seconds(artifact: Artifact) -> float:
    return float(artifact.manifest["report"].get("seconds", {}).get("kernels", 0.0))


def _take_up(
    artifact: Artifact,
    plan: Plan,
    bodies: Mapping[str, KernelBody],
    tasks: Sequence[Task],
    target: Target,
    machine: Hardware,
    records: Records,
) -> None:
    """Build an artifact's kernels anew where records choose otherwise than it has; else it takes
    the records alone.
    """
    had = {n: k.get("choices", {}) for n, k in artifact.manifest["report"]["kernels"].items()}
    known = chosen(tuned(records, machine.fingerprint))
    for task in tasks:
        choice = known.get(task.tunable.digest, {}).get(task.space.bucket.name, DEFAULT)
        taken = dict(choice.values) if task.space.allows(choice) else {}
        if taken != had.get(task.kernel, {}).get(task.space.bucket.name, {}):
            return rebuild(artifact, plan, bodies, target, records)
    keep_records(artifact, {t.tunable.digest for t in tasks}, machine, records)


def tune_model(
    model: nn.Module | str | Path,
    options: Options,
    budget: float,
    records: Path,
    *,
    measurers: Measurers | None = None,
    clock: Seconds = time.monotonic,
) -> TuneReport:
    """Tune the kernels that a language model would have, in so many seconds with the capture of it;
    nothing but records is written.
    """
    spent = Budget(budget, clock)
    target, stages = target_of(options), Clock()
    with progress(options.progress) as shown:
        shown.stage("measure the machine", 1)
        machine = _machine_of(target, records)
        shown.stage("capture", 2)
        opened = open_model(model, options.dtype)
        recorder = Recorder(watch=lambda ran: shown.step(ran.done.name))
        made = serve(opened, options, recorder, stages, shown)
        limits = limits_of(made.sizes, made.graph)
        backend = backend_of(target)
        kernels = Kernels.of(made.graph, backend, recorder, limits, recipe=options.recipe)
        tasks = tasks_of(kernels.plan, kernels.bodies, target)
        return _tuned(tasks, target, machine, records, spent, shown, measurers)


def _machine_of(target: Target, records: Path) -> Hardware:
    """The machine that kernels for a target are measured on; raises CompileError where it is not
    at hand.
    """
    if target.kind == "cuda":
        return device_here(target)
    if target.kind != "cpu":
        raise CompileError(f"tuning measures kernels for cpu and cuda, not for {target}")
    missing = target.missing_on(Target.parse("cpu"))
    if missing:
        raise CompileError(
            f"{target} cannot be tuned here: this machine lacks {', '.join(sorted(missing))}"
        )
    return hardware(target, records)


def _opened(folder: Path) -> Artifact:
    """An artifact whose files are whole; whether a GPU is at hand is asked when it is measured."""
    manifest = read_manifest(folder)
    if manifest["target"]["kind"] == "cpu":
        return load(folder)
    check_files(folder, manifest)
    return Artifact(folder)


def _take_in(path: Path, own: Records) -> None:
    """Add the records that a file has not."""
    had = read_records(path)
    if own.keys() - had.keys():
        write_records(path, own | had)


def _tuned(
    tasks: Sequence[Task],
    target: Target,
    machine: Hardware,
    records: Path,
    budget: Budget,
    shown: Progress,
    measurers: Measurers | None,
) -> TuneReport:
    workers = Workers(target, budget)
    try:
        return tune_tasks(tasks, measurers or workers, machine, records, budget, shown)
    finally:
        workers.end()


def artifact_target(artifact: Artifact) -> Target:
    """The target that an artifact was built for; a CPU's with this machine's cores and caches."""
    given = artifact.manifest["target"]
    options = artifact.manifest.get("options", {})
    deterministic = bool(options.get("deterministic", False))
    if given["kind"] != "cpu":
        made = Target.parse(f"{given['kind']}:{given['arch']}")
        return replace(made, deterministic=deterministic)
    return replace(
        Target.parse("cpu"),
        arch=given["arch"],
        features=frozenset(given["features"]),
        deterministic=deterministic,
    )


def kernels_of(artifact: Artifact, target: Target) -> tuple[Plan, dict[str, KernelBody]]:
    """The plan and the kernel bodies of an artifact, made again from its graph."""
    grouped = Recorder().run(step_of(artifact), grouping(backend_of(target)))
    had = artifact.plan
    planned = plan_memory(grouped, entries=tuple(had.entries), limits=had.limits)
    return planned.plan, {n: KernelBody(k.body, k.template) for n, k in planned.kernels.items()}


def rebuild(
    artifact: Artifact,
    plan: Plan,
    bodies: Mapping[str, KernelBody],
    target: Target,
    records: Records,
) -> None:
    """Put an artifact in the place of itself that differs in its kernels alone, which are built
    with what the records have chosen.
    """
    place = artifact.path

    def make(folder: Path) -> None:
        for name in read_manifest(place)["files"]:
            if name not in _KEPT_OUT and not name.startswith(f"{FOLDER}/"):
                _link(place / name, folder / name)
        if target.kind == "cpu":
            reports = write_library(bodies, target, folder, records)
        else:
            reports = write_binaries(bodies, plan, target, folder, records)
        made = write_plan(plan, reports, target, folder)
        # What a GPU's launches take beside the plan's own workspace is theirs.
        if replace(made, workspace_bytes=0) != replace(artifact.plan, workspace_bytes=0):
            raise CompileError(
                f"{place}: this version of ferrule makes another plan of its graph: compile again"
            )
        write_manifest(folder, _fields(artifact.manifest, reports))

    in_folder(place.parent, make).save(place)


def keep_records(
    artifact: Artifact, digests: Collection[str], machine: Hardware, records: Records
) -> None:
    """Put an artifact in the place of itself that differs in its tuning records alone."""
    place = artifact.path

    def make(folder: Path) -> None:
        for name in read_manifest(place)["files"]:
            if name != TUNING:
                _link(place / name, folder / name)
        write_records_of(folder / TUNING, records, machine.fingerprint, digests)
        kept_out = ("format", "files", "digest")
        write_manifest(folder, {k: v for k, v in artifact.manifest.items() if k not in kept_out})

    in_folder(place.parent, make).save(place)


def _fields(manifest: Mapping[str, Any], reports: Mapping[str, KernelReport]) -> dict[str, Any]:
    """The manifest with the choices of its kernels renewed."""
    fields = {k: v for k, v in manifest.items() if k not in ("format", "files", "digest")}
    choices = {
        r.function: {bucket: dict(c.values) for bucket, c in r.choices.items()}
        for r in reports.values()
    }
    report = dict(fields["report"])
    report["kernels"] = {
        name: {**kernel, "choices": choices.get(name, {})}
        for name, kernel in report["kernels"].items()
    }
    return {**fields, "report": report}


def _link(source: Path, copy: Path) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, copy)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, copy)
