"""For every test: a worker keeps to its core, and to measurements of its own; GPU tests are counted
where there is no GPU.
"""

import os
import tempfile
from collections.abc import Iterator

import pytest


def pytest_configure() -> None:
    _keep_to_one_core(os.environ.get("PYTEST_XDIST_WORKER", ""))
    # What the user has measured would change what is compiled here.
    os.environ["FERRULE_RECORDS"] = f"{tempfile.mkdtemp(prefix='ferrule-tests-')}/records.jsonl"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    wanted = [item for item in items if item.get_closest_marker("gpu")]
    if not wanted or _has_gpu():
        return
    for item in wanted:
        item.add_marker(pytest.mark.skip(reason="no GPU"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    count = sum(1 for report in _skipped(terminalreporter) if "gpu" in report.keywords)
    terminalreporter.write_line(f"gpu tests skipped: {count}")


def _skipped(reporter: pytest.TerminalReporter) -> Iterator[pytest.TestReport]:
    return (r for r in reporter.stats.get("skipped", []) if isinstance(r, pytest.TestReport))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _keep_to_one_core(worker: str) -> None:
    """Give each of several workers (gw0, gw1, ...) a core; torch and kernels then take one thread.

    Workers that share cores slow each other far below half: a parallel region waits for a thread
    that the other process keeps off its core.
    """
    if worker:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
        os.environ["OMP_NUM_THREADS"] = "1"
