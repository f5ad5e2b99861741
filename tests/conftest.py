"""For every test: a missing GPU skips the tests that need one, and the summary says how many."""

from collections.abc import Iterator

import pytest


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
