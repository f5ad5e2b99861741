"""Charts of an explained step as inline SVG: a roofline, and bars of time beside its limit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from .console import rate_text
from .hardware import Hardware
from .roofline import KernelLine, StepLines

WIDTH, HEIGHT = 560, 380
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 12, 40
BAR, NAME, VALUE = 20, 150, 128


@dataclass(frozen=True)
class _Scale:
    """A logarithmic axis: powers of ten `low` to `high` on pixels `begin` to `end`."""

    low: int
    high: int
    begin: float
    end: float

    @staticmethod
    def over(values: Sequence[float], begin: float, end: float) -> _Scale:
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        return _Scale(low, max(high, low + 1), begin, end)

    def __call__(self, value: float) -> float:
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return self.begin + min(1.0, max(0.0, share)) * (self.end - self.begin)

    @property
    def ticks(self) -> list[float]:
        return [10.0**power for power in range(self.low, self.high + 1)]


def roofline_chart(step: StepLines, machine: Hardware) -> str:
    """Operations a byte beside operations a second, under the machine's roofs; a point a kernel,
    as large as its share of the time.
    """
    shown = [k for k in step.kernels if k.work and k.seconds and k.nbytes]
    if not shown:
        return ""
    ridge = max(machine.peak.values()) / machine.read_bandwidth
    intensities = [k.work / k.nbytes for k in shown]
    x = _Scale.over([*intensities, ridge * 4], LEFT, WIDTH - RIGHT)
    rates = [k.work / (k.seconds or 1.0) for k in shown]
    y = _Scale.over([*rates, *machine.peak.values()], HEIGHT - BOTTOM, TOP)
    parts = [*_grid(x, y), *_roofs(machine, x, y)]
    largest = max(k.seconds or 0.0 for k in shown)
    for kernel in sorted(shown, key=lambda k: -(k.seconds or 0.0)):
        radius = 4 + 14 * math.sqrt((kernel.seconds or 0.0) / largest)
        place = x(kernel.work / kernel.nbytes), y(kernel.work / (kernel.seconds or 1.0))
        parts.append(_point(kernel, *place, radius))
    return _svg(WIDTH, HEIGHT, parts, "Roofline")


def _grid(x: _Scale, y: _Scale) -> Iterable[str]:
    for value in x.ticks:
        at = x(value)
        yield f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        yield _text(at, HEIGHT - BOTTOM + 16, f"{value:g}", "middle")
    for value in y.ticks:
        at = y(value)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        yield _text(LEFT - 6, at + 4, rate_text(value, "op/s"), "end")
    yield _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "operations a byte", "middle", "faint")


def _roofs(machine: Hardware, x: _Scale, y: _Scale) -> Iterable[str]:
    """The slopes of memory and caches up to the highest peak; each peak from the memory on."""
    far, highest = 10.0**x.high, max(machine.peak.values())
    for name, rate in (("memory", machine.read_bandwidth), ("caches", machine.cache_bandwidth)):
        low = max(10.0**x.low, 10.0**y.low / rate)
        yield _line(x, y, (low, low * rate), (highest / rate, highest), name)
        yield _along(x, y, low, rate, f"{name} {rate_text(rate, 'B/s')}")
    for dtype, peak in machine.peak.items():
        yield _line(x, y, (peak / machine.read_bandwidth, peak), (far, peak))
        yield _text(WIDTH - RIGHT, y(peak) - 4, f"{dtype} {rate_text(peak, 'op/s')}", "end")


def _line(
    x: _Scale, y: _Scale, begin: tuple[float, float], end: tuple[float, float], kind: str = ""
) -> str:
    points = f"{x(begin[0]):.1f},{y(begin[1]):.1f} {x(end[0]):.1f},{y(end[1]):.1f}"
    return f'<polyline class="roof {kind}-roof" points="{points}"/>'


def _along(x: _Scale, y: _Scale, low: float, rate: float, text: str) -> str:
    """A text on the slope of a rate, a little above its lower end."""
    left, right = (x(low), y(low * rate)), (x(low * 10), y(low * 10 * rate))
    angle = math.degrees(math.atan2(right[1] - left[1], right[0] - left[0]))
    turn = f'transform="rotate({angle:.1f} {left[0]:.1f} {left[1]:.1f})"'
    return f'<text x="{left[0] + 8:.1f}" y="{left[1] - 5:.1f}" {turn}>{escape(text)}</text>'


def _point(kernel: KernelLine, x: float, y: float, radius: float) -> str:
    """A circle for what memory bounds, a square for what computing does."""
    kind, title = f'class="point {kernel.bound}"', f"<title>{escape(_hint(kernel))}</title>"
    if kernel.bound == "memory":
        return f'<circle {kind} cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}">{title}</circle>'
    side, half = radius * 1.8, radius * 0.9
    place = f'x="{x - half:.1f}" y="{y - half:.1f}" width="{side:.1f}" height="{side:.1f}"'
    return f"<rect {kind} {place}>{title}</rect>"


def time_chart(step: StepLines) -> str:
    """A bar of time for each kernel, the part that its limit takes in colour."""
    shown = sorted(
        (k for k in step.kernels if k.seconds and k.limit is not None),
        key=lambda k: -(k.seconds or 0.0),
    )
    if not shown:
        return ""
    longest = max(max(k.seconds or 0.0, k.limit or 0.0) for k in shown)
    room = WIDTH - NAME - VALUE
    parts: list[str] = []
    for row, kernel in enumerate(shown):
        top, seconds, limit = row * BAR + 4, kernel.seconds or 0.0, kernel.limit or 0.0
        parts += [
            _text(NAME - 8, top + 11, f"{kernel.count} × {kernel.kernel}", "end"),
            _bar("track", top, room * seconds / longest, kernel),
            _bar(str(kernel.bound), top + 4, room * limit / longest, kernel, 6),
            _text(WIDTH, top + 11, f"{seconds * 1e3:.3f} ms, {kernel.ratio or 0:.0%}", "end"),
        ]
    return _svg(WIDTH, len(shown) * BAR + 8, parts, "Time of each kernel beside its limit")


def _bar(kind: str, top: float, width: float, kernel: KernelLine, height: int = 14) -> str:
    place = f'x="{NAME}" y="{top:.1f}" width="{max(1.0, width):.1f}" height="{height}"'
    return f'<rect class="{kind}" {place}><title>{escape(_hint(kernel))}</title></rect>'


def _hint(kernel: KernelLine) -> str:
    return f"{kernel.count} × {kernel.kernel}: {kernel.ops} from {kernel.origin}"


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} class="{kind}">{escape(text)}</text>'


def _svg(width: int, height: int, parts: Iterable[str], label: str) -> str:
    inner = "\n".join(parts)
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
    return f"{head}\n{inner}\n</svg>"
