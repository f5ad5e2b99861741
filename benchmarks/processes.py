"""Workers as seen from the run: processes that are asked, answer, and may fail alone."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .cases import COLD, Case, Room
from .stacks import ROOT, Installed


class WorkerError(Exception):
    """A worker that ended where an answer was due; the text names it and the end of its log."""


class Worker:
    """A stack in a process of its own; `loaded` is what it said of itself, None until it did."""

    def __init__(self, installed: Installed, model: Path, given: Room, log: Path) -> None:
        stack = installed.stack
        self.name, self.log = stack.name, log
        command = [
            *(installed.python, "-m", f"benchmarks.workers.run_{stack.worker}", str(model)),
            *("--threads", str(given.threads), "--room", str(given.tokens)),
            *("--sequences", str(given.sequences), "--mode", stack.mode),
        ]
        env = os.environ | {"OMP_NUM_THREADS": str(given.threads)} | dict(stack.environment)
        # Byte code is kept, as installed packages have theirs: or each start would compile sources.
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        self.begun = time.perf_counter()
        with log.open("a", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=env,
                cwd=ROOT,
            )
        self.loaded: Mapping[str, Any] | None = None

    def ask(self, case: Case, rounds: int) -> dict[str, Any]:
        """What one round of a case took."""
        request = {
            "prompt": case.prompt,
            "sequences": case.sequences,
            "steps": case.steps,
            "room": case.room(rounds),
            "keep": case.keeps,
        }
        return self._asked(request)

    def serve(self, sizes: Sequence[tuple[int, int]]) -> float:
        """Seconds for requests that are all there at once: tokens of each prompt and output."""
        return self._asked({"asks": list(sizes)})["seconds"]

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _asked(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if self.loaded is None:
            self.loaded = self._answer()
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # the missing answer tells what happened
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            last = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            end = last[-1][-200:] if last else "nothing in its log"
            raise WorkerError(f"{self.name} ended with {self.process.wait()}: {end} ({self.log})")
        return json.loads(line)


def cold_start(installed: Installed, model: Path, given: Room, log: Path) -> tuple[float, float]:
    """Seconds from the start of a process to the first token of a short prompt, and the most
    memory in bytes of that process once it has read a prompt of 512 tokens and generated 16.
    """
    first, second = COLD
    worker = Worker(installed, model, given, log)
    try:
        worker.ask(first, 0)
        taken = time.perf_counter() - worker.begun
        return taken, worker.ask(second, 0)["peak_bytes"]
    finally:
        worker.close()
