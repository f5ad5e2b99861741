"""Rounds in turn: every stack once, then every stack again, and the medians of each."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .cases import Case, Room
from .models import Model
from .processes import Worker, WorkerError, cold_start
from .stacks import Installed

PAUSE = 0.3  # seconds in which the threads of the stack before stop waiting for work


@dataclass
class Figures:
    """What was measured of one stack: median seconds by case, of a cold start, its peak memory, and
    what it said of itself. A `failure` is why the rest is missing.
    """

    installed: Installed
    model: Model
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    runs: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    cold: float | None = None
    peak_bytes: float | None = None
    said: Mapping[str, Any] = field(default_factory=dict[str, Any])
    failure: str = ""

    @property
    def name(self) -> str:
        """The stack's name."""
        return self.installed.stack.name


def measure_cold(all_: Sequence[Figures], room: Room, rounds: int, logs: Path) -> None:
    """Cold starts in turn, after one each that brings the files into memory."""
    taken: dict[str, list[tuple[float, float]]] = {f.name: [] for f in all_}
    for count in range(rounds + 1):
        for figures in _alive(all_):
            with_log = logs / f"{figures.name}.log"
            try:
                found = cold_start(figures.installed, figures.model.path, room, with_log)
            except WorkerError as error:
                figures.failure = str(error)
                continue
            if count:
                taken[figures.name].append(found)
    for figures in _alive(all_):
        runs = taken[figures.name]
        figures.runs["cold"] = [seconds for seconds, _ in runs]
        figures.cold = statistics.median(figures.runs["cold"])
        figures.peak_bytes = statistics.median(peak for _, peak in runs)


def measure_warm(
    all_: Sequence[Figures],
    cases: Iterable[Case],
    room: Room,
    rounds: int,
    logs: Path,
    tell: Callable[[Case], None],
) -> None:
    """Every case in rounds, on workers that stay loaded."""
    workers = {
        f.name: Worker(f.installed, f.model.path, room, logs / f"{f.name}.log")
        for f in _alive(all_)
    }
    try:
        for case in cases:
            _measure_case(all_, workers, case, rounds)
            tell(case)
        for figures in all_:
            if figures.name in workers:
                figures.said = workers[figures.name].loaded or {}
    finally:
        for worker in workers.values():
            worker.close()


def _measure_case(
    all_: Sequence[Figures], workers: Mapping[str, Worker], case: Case, rounds: int
) -> None:
    runs: dict[str, list[float]] = {f.name: [] for f in all_}
    for count in range(rounds + 1):  # the first one warms up
        for figures in _alive(all_):
            time.sleep(PAUSE)
            try:
                answer = workers[figures.name].ask(case, rounds)
            except WorkerError as error:
                figures.failure = str(error)
                continue
            if count:
                runs[figures.name].append(answer["decode" if case.steps else "prefill"])
    for figures in _alive(all_):
        figures.runs[case.name] = runs[figures.name]
        figures.seconds[case.name] = statistics.median(runs[figures.name])


def _alive(all_: Sequence[Figures]) -> Iterable[Figures]:
    return [f for f in all_ if not f.failure]
