"""Tunes kernels on the machine at hand: measures what the cost model leaves of each kernel's space
and records what wins, kernel by kernel, so that nothing measured is lost.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from ..codegen.space import Choice
from .console import Progress
from .duel import CandidateFault, Measurer, Verdict, decide
from .errors import CompileError
from .hardware import Hardware
from .measurer import WorkerEnded
from .records import append_record, read_records
from .tune_tasks import Task
from .tuning import Tuned, tuned, tuning_key


class Measurers(Protocol):
    """Gives the measurer of a task."""

    def on(self, task: Task) -> Measurer:
        """The measurer of one task."""
        ...


@dataclass(frozen=True)
class TunedLine:
    """One bucket of a kernel: the largest sample's seconds with the template's own values and with
    the choice, how many times as fast over all samples, whether it was measured in this run.
    """

    kernel: str
    ops: str
    calls: int
    bucket: str
    tokens: int
    default_seconds: float
    seconds: float
    gain: float
    choice: str
    measured: bool


@dataclass
class TuneReport:
    """What a tuning did: a line for each bucket that is tuned now, those that the budget did not
    reach, what fell out, and how many timings of candidates were made.
    """

    lines: list[TunedLine] = field(default_factory=list[TunedLine])
    left: list[str] = field(default_factory=list[str])
    faults: list[str] = field(default_factory=list[str])
    measurements: int = 0
    pruned: int = 0
    seconds: float = 0.0
    interrupted: bool = False

    def to_json(self) -> dict[str, Any]:
        """The report by names."""
        return asdict(self)


def tune_tasks(
    tasks: Sequence[Task],
    measurers: Measurers,
    machine: Hardware,
    records: Path,
    budget: float,
    shown: Progress,
    clock: Any = time.monotonic,
) -> TuneReport:
    """Tune the tasks that the records do not cover, the weightiest first, for so many seconds.

    Each result is recorded as it is found. A Ctrl-C ends the tuning with what there is.
    """
    report, begin = TuneReport(), clock()
    known = tuned(read_records(records), machine.fingerprint)
    ordered = by_weight(tasks, machine)
    shown.stage("tune", len(ordered))
    try:
        for task in ordered:
            shown.step(task.name)
            found = known.get(task.tunable.digest, {}).get(task.space.bucket.name)
            if found is not None and _covers(found, task):
                report.lines.append(_line(task, found, measured=False))
            elif clock() - begin >= budget:
                report.left.append(task.name)
            else:
                _tune(task, measurers, machine, records, report)
    except KeyboardInterrupt:
        report.interrupted = True
        done = {(line.kernel, line.bucket) for line in report.lines}
        at_hand = (t for t in ordered if (t.kernel, t.space.bucket.name) not in done)
        report.left = [t.name for t in at_hand]
    report.seconds = clock() - begin
    return report


def by_weight(tasks: Sequence[Task], machine: Hardware) -> list[Task]:
    """The weightiest first, each bucket by itself: the first tasks are of every bucket."""
    weights = [task.weight(machine) for task in tasks]
    most: dict[str, float] = {}
    for task, weight in zip(tasks, weights, strict=True):
        name = task.space.bucket.name
        most[name] = max(most.get(name, 0.0), weight)
    shares = [w / most[t.space.bucket.name] for t, w in zip(tasks, weights, strict=True)]
    order = sorted(range(len(tasks)), key=lambda at: -shares[at])
    return [tasks[at] for at in order]


def _covers(found: Tuned, task: Task) -> bool:
    """Whether a record says what this task would measure."""
    known = not found.choice.values or task.space.allows(found.choice)
    return known and {str(s) for s in task.samples} <= found.seconds.keys()


def _tune(
    task: Task,
    measurers: Measurers,
    machine: Hardware,
    records: Path,
    report: TuneReport,
) -> None:
    candidates = task.candidates(machine)
    report.pruned += len(task.space.choices()) - len(candidates)
    try:
        verdict = _verdict(task, measurers, candidates, machine)
    except (CandidateFault, WorkerEnded, CompileError) as error:
        report.faults.append(f"{task.name}: not tuned: {error}")
        return
    report.measurements += verdict.candidates
    report.faults += [f"{task.name}: {fault}" for fault in verdict.faults]
    made = Tuned(verdict.choice, verdict.seconds, verdict.candidates, task.ops)
    key = tuning_key(task.tunable.digest, task.space.bucket.name, machine.fingerprint)
    append_record(records, key, made.to_json())
    report.lines.append(_line(task, made, measured=True))


def _verdict(
    task: Task, measurers: Measurers, candidates: Sequence[Choice], machine: Hardware
) -> Verdict:
    """The verdict on candidates, and on what is near the winner where the space says so: against
    the template's own both times.
    """
    first = decide(measurers.on(task), candidates, task.samples)
    near = task.refined(first.choice, machine)
    if not near:
        return first
    winner = (first.choice,) if first.choice.values else ()
    second = decide(measurers.on(task), (*winner, *near), task.samples)
    taken = second if second.choice.values else first
    return replace(
        taken,
        candidates=first.candidates + second.candidates - len(winner),
        faults=first.faults + second.faults,
    )


def _line(task: Task, found: Tuned, *, measured: bool) -> TunedLine:
    largest = task.samples[-1]
    before, after = found.seconds[str(largest)]
    return TunedLine(
        kernel=task.kernel,
        ops=task.ops,
        calls=task.calls,
        bucket=task.space.bucket.name,
        tokens=largest.tokens,
        default_seconds=before,
        seconds=after,
        gain=found.gain,
        choice=task.space.words(found.choice),
        measured=measured,
    )
