"""What the command line prints: progress bars, tables, sizes in words."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .devices import BinaryLine
    from .hardware import Hardware
    from .roofline import Explanation, KernelLine, StepLines
    from .tune import TunedLine, TuneReport


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
    for unit in ("", "k", "M", "G", "T"):
        if count < 1000 or unit == "T":
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


def rate_text(rate: float, unit: str) -> str:
    """A rate in thousands to trillions a second."""
    for prefix in ("", "k", "M", "G"):
        if rate < 1000:
            return f"{rate:.3g} {prefix}{unit}"
        rate /= 1000
    return f"{rate:.3g} T{unit}"


def machine_text(machine: Hardware) -> str:
    """A machine's rates in one line."""
    peaks = (f"{rate_text(p, 'op/s')} {dtype}" for dtype, p in machine.peak.items())
    read, cached = machine.read_bandwidth, machine.cache_bandwidth
    rates = f"{rate_text(read, 'B/s')} from memory"
    if math.isfinite(cached):
        rates += f", {rate_text(cached, 'B/s')} from caches"
    return f"{rates}; peaks {', '.join(peaks)}"


def step_text(step: StepLines) -> str:
    """A step's dims and totals in one line."""
    dims = ", ".join(f"{k}={v}" for k, v in step.dims.items())
    text = (
        f"{step.entry}: {step.count} calls of {len(step.kernels)} kernels at {dims}; "
        f"{size_text(step.traffic.total)} ({size_text(step.traffic.weights)} of weights, "
        f"{size_text(step.traffic.caches)} of cache), {count_text(step.work)} operations"
    )
    if step.seconds is None or step.limit is None:
        return text
    return text + (
        f"; {step.seconds * 1e3:.2f} ms, {step.bound} allows {step.limit * 1e3:.2f} ms:"
        f" {_percent(step.ratio)}"
    )


def print_explanation(found: Explanation) -> None:
    """The machine, a table of kernels for each entry, and one of a GPU's machine code."""
    from .devices import is_stated

    if found.machine is not None:
        stated = is_stated(found.machine)
        whose = f"{found.machine.fingerprint}, as its maker states" if stated else "this machine"
        print(f"{whose}: {machine_text(found.machine)}")
    heads = ("kernel", "#calls", "template", "ops", "#bytes", "#operations", "in")
    heads += ("bound", "#limit us", "#us", "#ratio", "model source")
    for step in found.steps:
        print_table(step_text(step), heads, [_explained(line) for line in step.kernels])

    if found.binaries:
        print_table("machine code", BINARY_HEADS, [binary_cells(b) for b in found.binaries])


BINARY_HEADS = ("kernel", "rows", "binary", "choices")
BINARY_HEADS += ("#threads", "#registers", "#spilled bytes", "#shared bytes")


def binary_cells(line: BinaryLine) -> tuple[str, ...]:
    """A binary as cells of a table."""
    choices = ", ".join(f"{n} {v}" for n, v in line.choices.items())
    takes = (line.threads, line.registers, line.spilled, line.shared)
    return (line.kernel, line.rows, line.binary, choices, *map(str, takes))


def _explained(line: KernelLine) -> tuple[str, ...]:
    sizes = (size_text(line.nbytes), count_text(line.work), main_dtype(line))
    times = (line.bound or "", _us(line.limit), _us(line.seconds), _percent(line.ratio))
    return (
        line.kernel,
        str(line.count),
        line.template,
        line.ops,
        *sizes,
        *times,
        _first(line.origin),
    )


def _first(origin: str) -> str:
    """The first of several places."""
    first, *others = origin.split("; ")
    return f"{first} and {len(others)} more" if others else first


def main_dtype(line: KernelLine) -> str:
    """The dtype in which most of a kernel's operations are."""
    operations = line.operations or {}
    return max(operations, key=lambda d: operations[d]) if line.work else ""


def _us(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds * 1e6:.1f}" if seconds >= 1e-6 else f"{seconds * 1e6:.2g}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def print_tuning(report: TuneReport, records: str) -> None:
    """A table of what is tuned, and in words what was measured now, what was left and what fell
    out.
    """
    heads = ("kernel", "ops", "tokens", "#at", "#default us", "#best us", "#gain", "choice", "from")
    rows = [_tuned_cells(line) for line in report.lines]
    print_table("tuned kernels", heads, rows)
    recorded = sum(not line.measured for line in report.lines)
    print(
        f"{report.measurements} measurements in {report.seconds:.1f} s; {recorded} of "
        f"{len(report.lines)} results were recorded before; {report.pruned} choices were ruled out "
        f"by the model; records: {records}"
    )
    if report.is_idle:
        kept = f", {report.kept:.1f} s of it kept for building anew" if report.kept else ""
        print(
            f"  nothing could be tried: {report.seconds:.1f} s of a budget of {report.budget:g} s "
            f"had gone before a candidate was ready{kept}; give it a larger --budget"
        )
    for fault in report.faults:
        print(f"  fell out: {fault}")
    if report.left:
        why = "interrupted" if report.interrupted else "the budget is spent"
        print(f"  left as they are ({why}; run again to go on): {', '.join(report.left)}")


def _tuned_cells(line: TunedLine) -> tuple[str, ...]:
    times = (f"{line.default_seconds * 1e6:.1f}", f"{line.seconds * 1e6:.1f}")
    origin = "measured" if line.measured else "recorded"
    place = (line.kernel, line.ops, line.bucket, str(line.tokens))
    return (*place, *times, f"{line.gain:.3f}", line.choice, origin)


def choice_text(choice: Mapping[str, int]) -> str:
    """A choice as people read it: a GPU's templates have names."""
    from ..codegen.triton.candidates import NAMES

    values = dict(choice)
    template = [NAMES[values.pop("TEMPLATE")]] if "TEMPLATE" in values else []
    return " ".join([*template, ", ".join(f"{n} {v}" for n, v in values.items())]).strip()


def print_choices(manifest: dict[str, Any]) -> None:
    """What tuning chose for an artifact's kernels, where it chose anything."""
    kernels = manifest.get("report", {}).get("kernels", {})
    rows = [
        (name, kernel["ops"], bucket, choice_text(choice))
        for name, kernel in kernels.items()
        for bucket, choice in kernel.get("choices", {}).items()
    ]
    if rows:
        print_table("chosen by tuning", ("kernel", "ops", "tokens", "choice"), rows)


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
    chosen = sum(len(k.get("choices", ())) for k in report["kernels"].values())
    print(f"  chosen by tuning: {chosen} variants of kernels" if chosen else "  not tuned")
    for line in report["left"]:
        print(f"  left: {line}")
    for line in report.get("unquantized", ()):
        print(f"  unquantized: {line}")
    if reason := manifest.get("bounded_by"):
        print(f"  sequences of {manifest['limits']['max_context']} tokens at most: {reason}")
    if absent := manifest.get("absent"):
        print(f"  no token {absent['token']}, padding that is counted at {absent['place']}")
    if reason := report.get("unbatched"):
        print(f"  one text at a time: {reason}")
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
