"""A result of `ferrule bench serve` as lines to read, in vLLM's words."""

from collections.abc import Mapping, Sequence
from typing import Any

_WIDTH = 50
_LINES = (
    ("Successful requests:", "completed"),
    ("Failed requests:", "failed"),
    ("Benchmark duration (s):", "duration"),
    ("Total input tokens:", "total_input_tokens"),
    ("Total generated tokens:", "total_output_tokens"),
    ("Request throughput (req/s):", "request_throughput"),
    ("Request goodput (req/s):", "request_goodput"),
    ("Output token throughput (tok/s):", "output_throughput"),
    ("Peak output token throughput (tok/s):", "max_output_tokens_per_s"),
    ("Peak concurrent requests:", "max_concurrent_requests"),
    ("Total Token throughput (tok/s):", "total_token_throughput"),
)
_TITLES = {
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
}


def table(found: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """The lines of a report, those of each metric under its title."""
    lines = [" Serving Benchmark Result ".center(_WIDTH, "=")]
    lines += [_line(text, found[name]) for text, name in _LINES if found[name] is not None]
    for metric in metrics:
        lines.append(_TITLES[metric].center(_WIDTH, "-"))
        end = f"_{metric}_ms"
        for name in (name for name in found if name.endswith(end)):
            kind = name.removesuffix(end)
            kind = kind.upper() if kind.startswith("p") else kind.capitalize()
            lines.append(_line(f"{kind} {metric.upper()} (ms):", found[name]))
    return "\n".join([*lines, "=" * _WIDTH])


def _line(text: str, value: float) -> str:
    shown = f"{value:.2f}" if isinstance(value, float) else str(value)
    return f"{text:<40}{shown:>10}"


def sweep_table(runs: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> str:
    """A line for each rate of a sweep: what it gave, and the median and the highest percentile of
    each metric in milliseconds.
    """
    columns = [("rate", "request_rate"), ("req/s", "request_throughput")]
    columns += [("tok/s", "output_throughput")]
    if runs[0]["request_goodput"] is not None:
        columns.append(("good/s", "request_goodput"))
    for metric in metrics:
        own = [name for name in runs[0] if name.endswith(f"_{metric}_ms")]
        for name in (f"median_{metric}_ms", own[-1]):
            kind = name.removesuffix(f"_{metric}_ms")
            columns.append((f"{'p50' if kind == 'median' else kind} {metric}", name))
    lines = ["".join(f"{title:>11}" for title, _ in columns)]
    lines += ["".join(f"{_short(found[name]):>11}" for _, name in columns) for found in runs]
    return "\n".join(lines)


def _short(value: float | str) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
