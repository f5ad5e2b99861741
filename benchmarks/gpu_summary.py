"""What is asked of a GPU beside what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .gpu_worker import Line


class Wanted(NamedTuple):
    """A figure of a section, its least (greatest where `most`) value, and what it is."""

    section: str
    figure: str
    bound: float
    words: str
    most: bool = False


WANTED = (
    *(Wanted(f"linear {s}", "share_of_cublas", 0.8, "of cuBLAS")
      for s in ("2048x6144x4096", "2048x28672x4096", "2048x4096x14336", "8192x4096x4096")),
    *(Wanted(f"attention {p}", "share_of_sdpa", 0.8, "of SDPA's flash") for p in (2048, 8192)),
    Wanted("decode 1", "share_of_bandwidth", 0.85, "of the read bandwidth"),
    Wanted("int4 decode 1", "times_bfloat16", 2.2, "times bfloat16"),
    Wanted("first token", "seconds", 5.0, "s from start to first token", most=True),
    *(Wanted(f"{peer} {kind}", "times_ours", 1.0, "times as long as ours")
      for kind in ("decode 32", "decode 128", "prefill 2048", "prefill 8192")
      for peer in ("plain torch", "transformers")),
)  # fmt: skip
"""Held against the Llama 3.1 8B shape with random bfloat16 weights."""


def summary_lines(lines: Sequence[Line]) -> Iterator[str]:
    """For each figure that is asked for: what was measured and whether it is enough, or why there
    is nothing.
    """
    for wanted in WANTED:
        found = [line for line in lines if line.get("what") == wanted.section]
        value = next((li[wanted.figure] for li in reversed(found) if li.get(wanted.figure)), None)
        if value is not None:
            yield _verdict(wanted, value)
            continue
        why = next((line[w] for w in ("failed", "left_out") for line in found if w in line), "")
        reason = f"({why})" if why else ""
        yield f"?    {wanted.section:<28} not measured {reason}"[:160].rstrip()


def verdicts(line: Line) -> Iterator[str]:
    """What a line says of the figures that are asked for."""
    for wanted in WANTED:
        if line.get("what") == wanted.section and line.get(wanted.figure):
            yield _verdict(wanted, line[wanted.figure])


def _verdict(wanted: Wanted, value: float) -> str:
    good = value <= wanted.bound if wanted.most else value >= wanted.bound
    sign = "<=" if wanted.most else ">="
    said = f"{value:.3g} {wanted.words}, {sign} {wanted.bound:g}"
    return f"{'ok' if good else 'MISS':<4} {wanted.section:<28} {said}"
