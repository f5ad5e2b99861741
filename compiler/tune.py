"""Tunes kernels on the machine at hand: measures what the cost model leaves of each kernel's space
and records what wins, kernel by kernel, so that nothing measured is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from ..codegen.space import Choice
from .budget import Budget, OutOfTime
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
    reach, or not to the end, what fell out, and how many timings of candidates were made.
    `budget` and `kept` are the seconds that it had, and those of them for building anew.
    """

    lines: list[TunedLine] = field(default_factory=list[TunedLine])
    left: list[str] = field(default_factory=list[str])
    faults: list[str] = field(default_factory=list[str])
    measurements: int = 0
    pruned: int = 0
    seconds: float = 0.0
    budget: float = 0.0
    kept: float = 0.0
    interrupted: bool = False

    @property
    def is_idle(self) -> bool:
        """Whether there was something to try, and no time for any of it."""
        return bool(self.left) and not self.measurements and not self.interrupted

    def to_json(self) -> dict[str, Any]:
        """The report by names."""
        return asdict(self)


def tune_tasks(
    tasks: Sequence[Task],
    measurers: Measurers,
    machine: Hardware,
    records: Path,
    budget: Budget,
    shown: Progress,
) -> TuneReport:
    """Tune the tasks that the records do not cover, by what they are expected to gain, while the
    budget lasts.

    Each result is recorded as it is found, with the candidates that no time was left for: these are
    what is tried next time. A Ctrl-C ends the tuning with what there is.
    """
    report = TuneReport(budget=budget.seconds, kept=budget.kept)
    known = tuned(read_records(records), machine.fingerprint)
    ordered = by_gain(tasks, machine)
    shown.stage("tune", len(ordered))
    try:
        for task in ordered:
            shown.step(task.name)
            found = known.get(task.tunable.digest, {}).get(task.space.bucket.name)
            if found is not None and _covers(found, task):
                report.lines.append(_line(task, found, measured=False))
            elif not budget.left:
                report.left.append(task.name)
            else:
                _tune(task, measurers, machine, records, report, found)
    except KeyboardInterrupt:
        report.interrupted = True
        done = {(line.kernel, line.bucket) for line in report.lines}
        at_hand = (t for t in ordered if (t.kernel, t.space.bucket.name) not in done)
        report.left = [t.name for t in at_hand]
    report.seconds = budget.spent
    return report


def by_gain(tasks: Sequence[Task], machine: Hardware) -> list[Task]:
    """By a kernel's share of what a step cannot go below, each bucket by itself, times how much
    faster the model takes its likeliest choice for.
    """
    weights = [task.weight(machine) for task in tasks]
    most: dict[str, float] = {}
    for task, weight in zip(tasks, weights, strict=True):
        name = task.space.bucket.name
        most[name] = max(most.get(name, 0.0), weight)
    shares = [w / most[t.space.bucket.name] for t, w in zip(tasks, weights, strict=True)]
    gains = [share * task.expected(machine) for share, task in zip(shares, tasks, strict=True)]
    order = sorted(range(len(tasks)), key=lambda at: -gains[at])
    return [tasks[at] for at in order]


def _covers(found: Tuned, task: Task) -> bool:
    """Whether a record says what this task would measure."""
    known = not found.choice.values or task.space.allows(found.choice)
    return known and not found.left and {str(s) for s in task.samples} <= found.seconds.keys()


def _tune(
    task: Task,
    measurers: Measurers,
    machine: Hardware,
    records: Path,
    report: TuneReport,
    found: Tuned | None,
) -> None:
    candidates = _left_of(found, task) or task.candidates(machine)
    report.pruned += len(task.space.choices()) - len(candidates)
    try:
        verdict = _verdict(task, measurers, candidates, machine)
    except OutOfTime:
        report.left.append(task.name)
        return
    except (CandidateFault, WorkerEnded, CompileError) as error:
        report.faults.append(f"{task.name}: not tuned: {error}")
        return
    report.measurements += verdict.candidates
    report.faults += [f"{task.name}: {fault}" for fault in verdict.faults]
    if verdict.late:
        report.left.append(f"{task.name} ({len(verdict.late)} choices)")
    made = Tuned(verdict.choice, verdict.seconds, verdict.candidates, task.ops, verdict.late)
    key = tuning_key(task.tunable.digest, task.space.bucket.name, machine.fingerprint)
    append_record(records, key, made.to_json())
    report.lines.append(_line(task, made, measured=True))


def _left_of(found: Tuned | None, task: Task) -> tuple[Choice, ...]:
    """What an earlier tuning had no time for, behind what it chose; nothing where the space has no
    such choice any more.
    """
    if found is None or not found.left:
        return ()
    won = (found.choice,) if found.choice.values else ()
    return tuple(c for c in (*won, *found.left) if task.space.allows(c))


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
    try:
        second = decide(measurers.on(task), (*winner, *near), task.samples)
    except OutOfTime:
        return replace(first, late=(*first.late, *near))
    taken = second if second.choice.values else first
    return replace(
        taken,
        candidates=first.candidates + second.candidates - len(winner),
        faults=first.faults + second.faults,
        late=first.late + second.late,
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
