"""What the command line prints: progress bars, tables, sizes in words."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .explain import KernelLine


class Progress(Protocol):
    """Told what a build is doing: stages, each with steps."""

    def stage(self, name: str, total: int = 1) -> None:
        """Begin a stage of `total` steps; the one before is finished."""
        ...

    def step(self, label: str = "") -> None:
        """One step of the stage is done."""
        ...


class Silent:
    """Progress that nobody watches."""

    def stage(self, name: str, total: int = 1) -> None:
        """Say nothing."""

    def step(self, label: str = "") -> None:
        """Say nothing."""


class Bars:
    """Progress as one bar a stage, on the terminal."""

    def __init__(self, shown: Any) -> None:
        self._shown = shown
        self._task: Any = None

    def stage(self, name: str, total: int = 1) -> None:
        """Finish the bar before and begin another."""
        self.finish()
        self._task = self._shown.add_task(name, total=total, label="")

    def step(self, label: str = "") -> None:
        """Move the bar on."""
        self._shown.update(self._task, advance=1, label=label)

    def finish(self) -> None:
        """Fill the bar."""
        if self._task is not None:
            total = self._shown.tasks[self._task].total
            self._shown.update(self._task, completed=total, label="")


@contextmanager
def progress(wanted: bool) -> Iterator[Progress]:
    """Bars where they are wanted and somebody watches the terminal; silence elsewhere."""
    if not wanted or not sys.stderr.isatty():
        yield Silent()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Shown

    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[label]}"),
    )
    with Shown(*columns, console=Console(stderr=True)) as shown:
        bars = Bars(shown)
        yield bars
        bars.finish()


def size_text(count: float) -> str:
    """Bytes in the largest unit that keeps three digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.4g} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def count_text(count: float) -> str:
    """A count of operations in thousands, millions, billions."""
    for unit in ("", "k", "M", "G"):
        if count < 1000 or unit == "G":
            return f"{count:.3g}{unit}"
        count /= 1000
    raise AssertionError("unreachable")


def print_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table; numbers go to the right where a head begins with a hash sign."""
    from rich.console import Console
    from rich.table import Table

    # Piped, a table keeps its width: nothing is cut that a reader of a file would miss.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    table = Table(title=title, title_justify="left")
    for head in heads:
        table.add_column(head.lstrip("#"), justify="right" if head[0] == "#" else "left")
    for row in rows:
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    console.print(table)


def print_explanation(lines: Sequence[KernelLine]) -> None:
    """A table of kernels for each entry."""
    for entry in dict.fromkeys(line.entry for line in lines):
        chosen = [line for line in lines if line.entry == entry]
        dims = ", ".join(f"{k}={v}" for k, v in chosen[0].dims.items())
        calls = sum(line.count for line in chosen)
        title = f"{entry}: {len(chosen)} kernels, {calls} calls a step, at {dims}"
        if chosen[0].seconds is not None:
            title += f"; {sum(line.seconds or 0 for line in chosen) * 1e3:.2f} ms"
        heads = (
            "kernel",
            "#calls",
            "template",
            "ops",
            "#bytes",
            "#operations",
            "#us",
            "model source",
        )
        print_table(title, heads, [_explained(line) for line in chosen])


def _explained(line: KernelLine) -> tuple[str, ...]:
    time = "" if line.seconds is None else f"{line.seconds * 1e6:.1f}"
    sizes = (size_text(line.nbytes), count_text(line.operations), time)
    return (line.kernel, str(line.count), line.template, line.ops, *sizes, line.origin)


def print_build(manifest: dict[str, Any], place: str) -> None:
    """What a build did: passes, kernels, sizes, times, parity."""
    report = manifest["report"]
    rows = [
        (p["name"], str(p["before"]), str(p["after"]), str(p["new"]), f"{p['seconds'] * 1e3:.0f}")
        for p in report["passes"]
    ]
    print_table("passes", ("pass", "#nodes before", "#after", "#new", "#ms"), rows)
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in report["seconds"].items())
    target = manifest["target"]
    print(f"{place}: {manifest['model']} for {target['kind']}:{target['arch']}")
    print(f"  kernels: {len(report['kernels'])}; files: {size_text(_total(manifest))}; {seconds}")
    for line in report["left"]:
        print(f"  left: {line}")
    for line in report.get("unquantized", ()):
        print(f"  unquantized: {line}")
    if manifest.get("parity"):
        print(f"  parity with eager: {_parity_text(manifest['parity'])}")


def _total(manifest: dict[str, Any]) -> int:
    return sum(f["bytes"] for f in manifest["files"].values())


def _parity_text(parity: dict[str, Any]) -> str:
    return (
        f"{parity['positions']} positions, top-1 agreement {parity['top1']:.1%}, "
        f"KL {parity['kl']:.2g}, largest logit error {parity['error']:.3g} "
        f"({parity['relative']:.2g} relative)"
    )
