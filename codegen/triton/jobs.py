"""Entries to machine code, by several processes at once where there are cores for them: a model has
dozens, and each takes the compiler a second or more.

This file is also the program of such a process: it reads pickled jobs from its input, and writes
what became of each.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ...ir.target import Target
from ..errors import CodegenError
from .compile import Compiled, compile_entry
from .kernel import Start

MOST = 16
"""Processes at most."""
EACH = 2
"""Entries from which on a process of its own is worth its start."""


class Job(NamedTuple):
    """An entry to compile: the file that it is in, its choices, the dtypes of its pointers."""

    source: Path
    start: Start
    pointers: Mapping[str, str]
    target: Target


def compile_all(jobs: Sequence[Job], workers: int | None = None) -> list[Compiled | CodegenError]:
    """What becomes of each job; an entry that cannot be compiled, or does not fit, gives its error.

    `workers` are as many as there are cores where it is None; one compiles in this process.
    """
    if workers is None:
        cores = len(os.sched_getaffinity(0))
        workers = min(MOST, cores, len(jobs) // EACH) if cores > 2 else 1
    if workers <= 1:
        return [_made(job) for job in jobs]
    shares = [jobs[at::workers] for at in range(workers)]
    processes = [_started(share) for share in shares]
    found: list[Compiled | CodegenError | None] = [None] * len(jobs)
    for at, process in enumerate(processes):
        output, errors = process.communicate()
        if process.returncode:
            raise CodegenError(f"a process that compiles kernels failed: {errors.decode()[-500:]}")
        found[at::workers] = pickle.loads(output)
    return [made for made in found if made is not None]


def _made(job: Job) -> Compiled | CodegenError:
    try:
        return compile_entry(*job)
    except CodegenError as error:
        return error


def _started(share: Sequence[Job]) -> subprocess.Popen[bytes]:
    # Beside the package's folder, so that the same sources are found.
    path = os.pathsep.join(p for p in (str(Path(__file__).resolve().parents[2]), *sys.path) if p)
    # A file holds the jobs: a process that is not read from while another is written to may wait.
    process = subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert process.stdin is not None, "opened with a pipe"
    process.stdin.write(pickle.dumps(list(share)))
    process.stdin.close()
    process.stdin = None
    return process


def main() -> None:
    """Compile the jobs on the input."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a compiler prints must not be taken for an answer
    jobs: list[Job] = pickle.loads(sys.stdin.buffer.read())
    answers.write(pickle.dumps([_made(job) for job in jobs]))
    answers.close()


if __name__ == "__main__":
    main()
