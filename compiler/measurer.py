"""Times the candidates of a kernel in another process, which is begun anew when one of them ends
it.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..codegen.space import Choice, Sample
from ..ir.plan import Argument
from ..ir.target import Target
from ..ir.text import print_graph
from .budget import Budget, OutOfTime
from .duel import CandidateFault, Prepared, Times, contest_seconds
from .errors import CompileError
from .trial_arguments import step_dims
from .trial_requests import MINIMUM
from .tune_tasks import Task

START, COMPILE, EACH, RUN = 60.0, 30.0, 10.0, 60.0  # seconds: begin, compile, each candidate, run


class WorkerEnded(Exception):
    """The process ended, or was `late` with its answer; `running` is the candidate that it ran."""

    def __init__(self, reason: str, running: int | None, *, late: bool = False) -> None:
        super().__init__(reason)
        self.running, self.late = running, late


TRIALS = {"cpu": "trial", "cuda": "device_trial"}
"""The program of the process, by the kind of a target."""


class Worker:
    """The process: requests and replies are lines of JSON."""

    def __init__(self, program: str, seconds: float = START) -> None:
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
        try:
            self._read(seconds)
        except BaseException:
            self.end()
            raise

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
                raise WorkerEnded(f"no answer in {seconds:.0f} s", running, late=True)
            part = self._output.read()
            if not part:
                code = self._process.wait()
                raise WorkerEnded(f"the process ended with {_status(code)}", running)
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def end(self) -> None:
        """End the process, and those that it has begun."""
        with contextlib.suppress(ProcessLookupError):  # it has ended, and so have they
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._selector.close()
        self._input.close()
        self._output.close()


def _status(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"status {code}"


class Workers:
    """The measurer of a tuning: one process at a time, for one task after another, until its budget
    is spent.
    """

    def __init__(self, target: Target, budget: Budget | None = None) -> None:
        self._target, self.budget = target, budget or Budget()
        self._worker: Worker | None = None
        self._task: TaskMeasurer | None = None
        self._told: TaskMeasurer | None = None

    @property
    def together(self) -> int:
        """How many candidates are compiled at a time: on a GPU's machine, as its pool has room."""
        return 1 if self._target.kind == "cpu" else max(1, len(os.sched_getaffinity(0)) - 1)

    def on(self, task: Task) -> TaskMeasurer:
        """The measurer of one task, which is the only one from then on."""
        self._forget()
        self._task = TaskMeasurer(self, task, self._target)
        return self._task

    def ask(
        self, asking: TaskMeasurer, request: Mapping[str, Any], seconds: float
    ) -> dict[str, Any]:
        """Ask the process, which is begun if there is none, and told of the task; raises OutOfTime
        where the budget ends first.
        """
        limit = min(seconds, self.budget.left)
        try:
            if not self.budget.left:
                raise OutOfTime("the budget is spent")
            return self._asked(asking, request, seconds)
        except WorkerEnded as ended:
            self._end_worker()
            if ended.late and (limit < seconds or not self.budget.left):
                raise OutOfTime(str(ended)) from ended
            raise
        except BaseException:
            self._end_worker()
            raise

    def _asked(
        self, asking: TaskMeasurer, request: Mapping[str, Any], seconds: float
    ) -> dict[str, Any]:
        if self._worker is None:
            self._worker = Worker(TRIALS[self._target.kind], min(START, self.budget.left))
        if self._told is not asking:
            reply = self._worker.ask(asking.described, min(START, self.budget.left))
            if "error" in reply:
                return reply
            self._told = asking
        return self._worker.ask(request, min(seconds, self.budget.left))

    def _end_worker(self) -> None:
        self._told = None
        if self._worker is not None:
            worker, self._worker = self._worker, None
            worker.end()

    def _forget(self) -> None:
        if self._task is not None:
            task, self._task = self._task, None
            task.close()

    def end(self) -> None:
        """End the process, if there is one, and remove what was compiled."""
        self._end_worker()
        self._forget()


class TaskMeasurer:
    """Compiles and times the candidates of one task. What is compiled lies in a folder: a process
    that has ended takes none of it along.
    """

    def __init__(self, workers: Workers, task: Task, target: Target) -> None:
        self._workers, self._task = workers, task
        self._folder = tempfile.TemporaryDirectory(prefix="ferrule-tune-")
        self.described = trial_request(task, target, Path(self._folder.name))

    def prepare(self, choices: Sequence[Choice]) -> Prepared:
        """Compile the candidates, the template's own first, while there is time for one more and
        for what tells which is the fastest.
        """
        faults: dict[int, str] = {}
        longest, done = 0.0, 0
        for batch in self._batches(len(choices)):
            if done and self._left(batch[-1]) <= longest:
                break
            begun = self._workers.budget.spent
            try:
                faults |= self._compiled({at: choices[at] for at in batch})
            except OutOfTime:
                break
            longest, done = max(longest, self._workers.budget.spent - begun), batch[-1] + 1
        if not done:
            raise OutOfTime(f"{self._task.name}: its own code is not compiled")
        return Prepared(faults, tuple(range(done, len(choices))))

    def _batches(self, count: int) -> Iterator[range]:
        yield range(1)
        size = self._workers.together
        for at in range(1, count, size):
            yield range(at, min(at + size, count))

    def _left(self, candidates: int) -> float:
        """Seconds to compile in, if so many candidates are to be measured afterwards."""
        return self._workers.budget.left - contest_seconds(
            candidates, len(self._task.samples), 2 * MINIMUM
        )

    def times(self, which: Sequence[int], sample: Sample, rounds: int) -> Times:
        """Seconds of the candidates; raises CandidateFault, and the others may be timed again."""
        dims = step_dims(sample, self._task.bounds, self._task.block)
        request = {
            "do": "times",
            "which": list(which),
            "sample": asdict(sample),
            "dims": dims,
            "rounds": rounds,
        }
        try:
            reply = self._workers.ask(self, request, RUN)
        except WorkerEnded as ended:
            if ended.running is None:
                raise CompileError(f"{self._task.name}: {ended}") from ended
            raise CandidateFault(ended.running, str(ended)) from ended
        if "error" in reply:
            raise CompileError(f"{self._task.name}, {sample} tokens: {reply['error']}")
        return reply["seconds"]

    def _compiled(self, choices: Mapping[int, Choice]) -> dict[int, str]:
        """Compile candidates; where the process does not live through all of them at once, one by
        one to find out whose fault it is.
        """
        request = {"do": "compile", "choices": {at: dict(c.values) for at, c in choices.items()}}
        try:
            reply = self._workers.ask(self, request, COMPILE + EACH * len(choices))
        except WorkerEnded as ended:
            if len(choices) == 1:
                return dict.fromkeys(choices, str(ended))
            alone = [self._compiled({at: choice}) for at, choice in choices.items()]
            return {at: fault for faults in alone for at, fault in faults.items()}
        if "error" in reply:
            raise CompileError(f"{self._task.name}: {reply['error']}")
        return {int(at): fault for at, fault in reply["faults"].items()}

    def close(self) -> None:
        """Remove what was compiled."""
        self._folder.cleanup()


def trial_request(task: Task, target: Target, folder: Path) -> dict[str, Any]:
    """What a trial is told of a task, whose candidates are compiled into a folder."""
    return {
        "do": "prepare",
        "body": print_graph(task.body, origins=False),
        "target": {**asdict(target), "features": sorted(target.features)},
        "bucket": task.space.bucket.name,
        "folder": str(folder),
        "arguments": [_argument(a) for a in task.arguments],
        "block": task.block,
        "indices": task.indices,
    }


def _argument(argument: Argument) -> dict[str, Any]:
    return {**asdict(argument), "offset": 0}
