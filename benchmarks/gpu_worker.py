"""The sections of the GPU benchmark in a process that may be lost: an address that is not there, or
a kernel that does not end, takes the process's device with it, and the rest goes on in another one.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Line = dict[str, Any]
Show = Callable[[Line], None]
ROOT = Path(__file__).parents[1]
BROKEN = 3
"""The status of a process whose device does not answer any more."""


def run_sections(
    wanted: Sequence[tuple[str, Callable[[], Iterator[Line]]]],
    show: Show,
    is_well: Callable[[], bool],
) -> int:
    """Run sections one after another, each announced; what fails is shown with its reason. Gives
    the status to end with: after a failure that leaves the device unusable nothing else is run.
    """
    for name, section in wanted:
        show({"begin": name})
        try:
            for line in section():
                show({"what": name, **line})
        except Exception as error:
            trace = (w.strip() for w in traceback.format_exc().splitlines())
            where = [w for w in trace if w.strip("^~ ")][-4:-1]
            reason = f"{type(error).__name__}: {str(error)[:600]}"
            show({"what": name, "failed": reason, "where": where})
            if not is_well():
                return BROKEN
    return 0


@dataclass
class Sections:
    """Runs sections by name in processes of `command`, which takes the names as JSON at its end.

    `limits` are the most seconds of a section, with one for "" for those not named.
    """

    command: Sequence[str]
    limits: Mapping[str, float]
    show: Show
    clock: Callable[[], float] = time.monotonic

    def run(self, names: Sequence[str], seconds: float) -> None:
        """Run all, in that order, within so many seconds; those that are not reached are named."""
        end, left = self.clock() + seconds, list(names)
        while left and self.clock() < end:
            left = self._some(left, end)
        for name in left:
            self.show({"what": name, "left_out": "out of time"})

    def _some(self, names: list[str], end: float) -> list[str]:
        """Run sections in one process, to the end or until it is lost; gives those left."""
        process = subprocess.Popen(
            [*self.command, json.dumps(names)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=ROOT, start_new_session=True,
        )  # fmt: skip
        left, running = list(names), ""
        reader = _Reader(process)
        try:
            while True:
                limit = self.limits.get(running, self.limits[""])
                line = reader.line(min(limit, max(1.0, end - self.clock())))
                if line is None:
                    break
                if "begin" in line:
                    running = line["begin"]
                    left = left[left.index(running) + 1 :]
                else:
                    self.show(line)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        status, reason = reader.ended()
        if reason and status != BROKEN:  # else the section has said what is wrong
            self.show({"what": running or names[0], "failed": reason})
        if not status:
            return []
        return left if running else left[1:]  # what does not begin is not tried for ever


class _Reader:
    """Lines of JSON that a process writes; what else it writes is kept for its last words."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None and process.stderr is not None, "opened with pipes"
        self._process, self._late = process, False
        self._selector = selectors.DefaultSelector()
        self._parts = {process.stdout: b"", process.stderr: b""}
        for stream in self._parts:
            os.set_blocking(stream.fileno(), False)
            self._selector.register(stream, selectors.EVENT_READ)

    def line(self, seconds: float) -> Line | None:
        """The next line; None where there is none in so many seconds, or no more."""
        end = time.monotonic() + seconds
        out = self._process.stdout
        assert out is not None, "opened with a pipe"
        while self._selector.get_map():
            while b"\n" in self._parts[out]:
                text, _, self._parts[out] = self._parts[out].partition(b"\n")
                if text.startswith(b"{"):
                    return json.loads(text)
            ready = self._selector.select(max(0.0, end - time.monotonic()))
            if not ready:
                self._late = True
                return None
            for key, _ in ready:
                stream: Any = key.fileobj
                part = stream.read()
                if not part:
                    self._selector.unregister(stream)
                    continue
                self._parts[stream] = (self._parts[stream] + part)[-(1 << 20) :]
        return None

    def ended(self) -> tuple[int, str]:
        """End the process; its status, and in words why it gave no more, "" where it was done."""
        if self._late:
            os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        self._selector.close()
        if self._late:
            return -9, "took too long, and was ended"
        if status == 0:
            return 0, ""
        error = self._process.stderr
        assert error is not None, "opened with a pipe"
        words = self._parts[error].decode(errors="replace").strip().splitlines()[-3:]
        return status, f"the process ended with status {status}: {' | '.join(words)[-600:]}"


def shown_on_output(line: Line) -> None:
    """Write a line for whoever reads the process."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
