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
