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
    for section, figure, bound, words, most in WANTED:
        found = [line for line in lines if line.get("what") == section]
        value = next((line[figure] for line in reversed(found) if line.get(figure)), None)
        sign = "<=" if most else ">="
        if value is None:
            why = next((line[w] for w in ("failed", "left_out") for line in found if w in line), "")
            yield f"?    {section:<28} not measured {f'({why})' if why else ''}"[:160].rstrip()
            continue
        good = value <= bound if most else value >= bound
        yield f"{'ok' if good else 'MISS':<4} {section:<28} {value:.3g} {words}, {sign} {bound:g}"
