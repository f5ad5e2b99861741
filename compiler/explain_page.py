"""`ferrule explain --html`: an explanation as one page that loads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from .charts import roofline_chart, time_chart
from .console import (
    BINARY_HEADS,
    binary_cells,
    count_text,
    machine_text,
    main_dtype,
    rate_text,
    size_text,
)
from .devices import BinaryLine, is_stated
from .hardware import Hardware
from .roofline import Explanation, KernelLine, StepLines

STYLE = Path(__file__).with_name("explain.css")
WORDS = frozenset({"kernel", "ops", "in", "bound", "model source"})
HEADS = ("kernel", "calls", "bytes", "operations", "in", "op/byte", "bound", "limit, µs")
HEADS += ("time, µs", "ratio", "ops", "model source")


def page(found: Explanation) -> str:
    """The whole page as text; light or dark as its reader has it."""
    machine = found.machine
    about = "Nothing was measured." if machine is None else _about(machine)
    body = "\n".join(_section(step, machine) for step in found.steps) + _binaries(found.binaries)
    title = escape(f"{found.name}: kernels of a step")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{STYLE.read_text(encoding="utf-8")}</style>
</head>
<body>
<h1>{title}</h1>
<p>{escape(about)}</p>
{body}
</body>
</html>
"""


def _about(machine: Hardware) -> str:
    kind = "Held against what its maker states" if is_stated(machine) else "Measured here"
    return f"{kind}: {machine_text(machine)} ({machine.fingerprint})"


def _section(step: StepLines, machine: Hardware | None) -> str:
    dims = ", ".join(f"{name} = {value}" for name, value in step.dims.items())
    facts = "".join(f"<div><dt>{n}</dt><dd>{escape(v)}</dd></div>" for n, v in _facts(step))
    charts = "" if machine is None else _charts(step, machine)
    return (
        f"<h2>{escape(step.entry)}</h2>\n<p>{escape(dims)}</p>\n<dl>{facts}</dl>\n"
        f'{charts}<div class="table">{_table(step)}</div>'
    )


def _binaries(lines: Sequence[BinaryLine]) -> str:
    if not lines:
        return ""
    heads = "".join(f"<th>{escape(h.lstrip('#'))}</th>" for h in BINARY_HEADS)
    rows = "\n".join(
        f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in binary_cells(line))}</tr>" for line in lines
    )
    table = f"<table>\n<tr>{heads}</tr>\n{rows}\n</table>"
    return f'\n<h2>machine code</h2>\n<div class="table">{table}</div>'


def _facts(step: StepLines) -> Iterable[tuple[str, str]]:
    yield "kernel calls", f"{step.count}"
    yield "weights read", size_text(step.traffic.weights)
    yield "cache read", size_text(step.traffic.caches)
    yield "operations", count_text(step.work)
    if step.seconds and step.limit:
        yield "time", f"{step.seconds * 1e3:.2f} ms"
        yield "limit", f"{step.limit * 1e3:.2f} ms"
        yield "ratio", f"{step.ratio:.0%}"
        yield "bound", f"{step.bound}"
        yield "bytes a second", rate_text(step.traffic.total / step.seconds, "B/s")
        yield "operations a second", rate_text(step.work / step.seconds, "op/s")


def _charts(step: StepLines, machine: Hardware) -> str:
    drawings = (
        (
            "Roofline",
            "circles: memory-bound, squares: compute-bound",
            roofline_chart(step, machine),
        ),
        ("Time of each kernel", "grey: measured, colour: the limit", time_chart(step)),
    )
    figures = "\n".join(
        f"<figure><figcaption>{name} <span>{note}</span></figcaption>\n{drawing}\n</figure>"
        for name, note, drawing in drawings
        if drawing
    )
    return f'<div class="charts">\n{figures}\n</div>\n'


def _table(step: StepLines) -> str:
    heads = "".join(f"<th{_word(h)}>{escape(h)}</th>" for h in HEADS)
    rows = "\n".join(_row(_cells(k), str(k.bound)) for k in step.kernels)
    total = _row(_total(step), str(step.bound), "total")
    return f"<table>\n<tr>{heads}</tr>\n{rows}\n{total}\n</table>"


def _row(cells: Sequence[str], bound: str, kind: str = "") -> str:
    inner = "".join(_cell(h, c, bound) for h, c in zip(HEADS, cells, strict=True))
    return f'<tr class="{kind}">{inner}</tr>'


def _cell(head: str, text: str, bound: str) -> str:
    mark = f'<span class="mark {bound}"></span>' if head == "bound" and text else ""
    return f"<td{_word(head)}>{mark}{escape(text)}</td>"


def _word(head: str) -> str:
    wide = " wide" if head in ("ops", "model source") else ""
    return f' class="word{wide}"' if head in WORDS else ""


def _cells(kernel: KernelLine) -> tuple[str, ...]:
    name, source = kernel.kernel, (kernel.ops.replace("+", " + "), kernel.origin)
    return (name, f"{kernel.count}", *_sizes(kernel, kernel.nbytes, main_dtype(kernel)), *source)


def _total(step: StepLines) -> tuple[str, ...]:
    return ("total", f"{step.count}", *_sizes(step, step.traffic.total, ""), "", "")


def _sizes(line: KernelLine | StepLines, nbytes: int, dtype: str) -> tuple[str, ...]:
    intensity = f"{line.work / nbytes:.3g}" if nbytes else ""
    ratio = "" if line.ratio is None else f"{line.ratio:.0%}"
    times = (_us(line.limit), _us(line.seconds), ratio)
    sizes = (size_text(nbytes), count_text(line.work), dtype, intensity)
    return (*sizes, line.bound or "", *times)


def _us(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e6:,.1f}"
