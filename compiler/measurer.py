"""Times the candidates of a kernel in another process, which is begun anew when one of them ends
it.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..codegen.space import DEFAULT, Choice, Sample
from ..ir.plan import Argument
from ..ir.target import Target
from ..ir.text import print_graph
from .duel import CandidateFault, Times
from .errors import CompileError
from .trial_arguments import step_dims
from .tune_tasks import Task

START, COMPILE, EACH, RUN = 60.0, 30.0, 10.0, 60.0  # seconds: begin, compile, each candidate, run


class WorkerEnded(Exception):
    """The process ended, or did not answer in time; `running` is the candidate that it ran."""

    def __init__(self, reason: str, running: int | None) -> None:
        super().__init__(reason)
        self.running = running


TRIALS = {"cpu": "trial", "cuda": "device_trial"}
"""The program of the process, by the kind of a target."""


class Worker:
    """The process: requests and replies are lines of JSON."""

    def __init__(self, program: str) -> None:
        # Beside the package's folder, so that the same sources are found; and out of reach of a
        # Ctrl-C, after which records are still written here.
        root = Path(__file__).resolve().parents[1]
        path = os.pathsep.join(p for p in (str(root), *sys.path) if p)
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__.rpartition(".")[0] + f".{program}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )
        assert self._process.stdin and self._process.stdout
        self._input, self._output = self._process.stdin, self._process.stdout
        os.set_blocking(self._output.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._output, selectors.EVENT_READ)
        self._buffer = b""
        self._read(START)

    def ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """The reply to a request; raises WorkerEnded where there is none in so many seconds."""
        try:
            self._input.write(json.dumps(request).encode() + b"\n")
            self._input.flush()
        except OSError as error:
            raise WorkerEnded(f"the process has ended: {error}", None) from error
        running: int | None = None
        while True:
            reply = self._read(seconds, running)
            if "running" not in reply:
                return reply
            running = reply["running"]

    def _read(self, seconds: float, running: int | None = None) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            if not self._selector.select(seconds):
                raise WorkerEnded(f"no answer in {seconds:.0f} s", running)
            part = self._output.read()
            if not part:
                code = self._process.wait()
                raise WorkerEnded(f"the process ended with {_status(code)}", running)
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._selector.close()
        self._input.close()
        self._output.close()


def _status(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"status {code}"


class Workers:
    """The measurer of a tuning: one process at a time, for one task after another."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._worker: Worker | None = None

    def on(self, task: Task) -> TaskMeasurer:
        """The measurer of one task."""
        return TaskMeasurer(self, task, self._target)

    def ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Ask the process, which is begun if there is none."""
        try:
            if self._worker is None:
                self._worker = Worker(TRIALS[self._target.kind])
            return self._worker.ask(request, seconds)
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """End the process, if there is one."""
        if self._worker is not None:
            worker, self._worker = self._worker, None
            worker.end()


class TaskMeasurer:
    """Compiles and times the candidates of one task."""

    def __init__(self, workers: Workers, task: Task, target: Target) -> None:
        self._workers, self._task, self._target = workers, task, target
        self._choices: list[Choice] = []
        self._fallen: set[int] = set()

    def prepare(self, choices: Sequence[Choice]) -> Mapping[int, str]:
        """Compile the candidates; where the process does not live through all of them at once, one
        by one to find out whose fault it is.
        """
        self._choices = list(choices)
        try:
            faults = self._compiled(range(len(choices)))
        except WorkerEnded:
            faults = {}
            for at in range(1, len(choices)):
                try:
                    faults |= self._compiled([at])
                except WorkerEnded as ended:
                    faults[at] = str(ended)
            self._fallen = set(faults)
            faults |= self._again()
        self._fallen = set(faults)
        return faults

    def times(self, which: Sequence[int], sample: Sample, rounds: int) -> Times:
        """Seconds of the candidates; after a fault the rest are compiled again."""
        dims = step_dims(sample, self._task.bounds, self._task.block)
        request = {
            "do": "times",
            "which": list(which),
            "sample": asdict(sample),
            "dims": dims,
            "rounds": rounds,
        }
        try:
            reply = self._workers.ask(request, RUN)
        except WorkerEnded as ended:
            if ended.running is None:
                raise CompileError(f"{self._task.name}: {ended}") from ended
            self._fallen.add(ended.running)
            if ended.running:
                self._again()
            raise CandidateFault(ended.running, str(ended)) from ended
        if "error" in reply:
            raise CompileError(f"{self._task.name}, {sample} tokens: {reply['error']}")
        return reply["seconds"]

    def _again(self) -> dict[int, str]:
        return self._compiled([at for at in range(len(self._choices)) if at not in self._fallen])

    def _compiled(self, which: Sequence[int]) -> dict[int, str]:
        """Compile these candidates; the places of the others hold the template's own."""
        kept = set(which)
        choices = [c if at in kept else DEFAULT for at, c in enumerate(self._choices)]
        last = max(kept, default=0)
        request = trial_request(self._task, self._target, choices[: last + 1])
        reply = self._workers.ask(request, COMPILE + EACH * len(kept))
        if "error" in reply:
            raise CompileError(f"{self._task.name}: {reply['error']}")
        return {int(at): fault for at, fault in reply["faults"].items()}


def trial_request(task: Task, target: Target, choices: Sequence[Choice]) -> dict[str, Any]:
    """What a trial is asked to make ready: choices of a task's kernel, for a target."""
    return {
        "do": "prepare",
        "body": print_graph(task.body, origins=False),
        "target": {**asdict(target), "features": sorted(target.features)},
        "bucket": task.space.bucket.name,
        "choices": [dict(c.values) for c in choices],
        "arguments": [_argument(a) for a in task.arguments],
        "block": task.block,
        "indices": task.indices,
    }


def _argument(argument: Argument) -> dict[str, Any]:
    return {**asdict(argument), "offset": 0}
