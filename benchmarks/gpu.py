"""Checks and times a GPU in one call: `python -m benchmarks.gpu [--layers 32] [--minutes 9]`.

First the device and what its memory gives, then single kernels (linears beside cuBLAS, attention
beside SDPA), then a model of the shape of Llama 3.1 8B with random bfloat16 weights, compiled for
the device at hand: its logits beside eager's, decode steps of several batches against the
bandwidth, prefill of several lengths, 4-bit weights, start to first token in a process of its own;
beside them a compiled loop in plain torch, and transformers with a static cache and torch.compile;
at the end the tests that need a GPU, and what is asked of a GPU beside what was measured.

One JSON line a figure, printed and written to benchmarks/results/ as soon as it is there. Sections
run in a process of their own (gpu_worker.py): one that fails says so, one that takes its device
with it or does not end is given up, and the rest goes on; what does not begin within the minutes
is named as left out. `--only PART` runs the sections whose names hold it.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from .gpu_summary import summary_lines
from .gpu_worker import ROOT, Line, Sections

RESULTS = Path(__file__).parent / "results"
LIMITS = {"": 75.0, "build": 200.0, "build int4": 200.0, "tests": 240.0}
"""Seconds of a section, after which it is given up."""


def names_of(only: str) -> list[str]:
    """The sections whose names hold a text, and the first, which finds the device."""
    code = "from benchmarks.gpu_sections import Bench, sections; from pathlib import Path; "
    code += "print(*(n for n, _ in sections(Bench(Path(), 1))), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"benchmarks.gpu: {done.stderr[-800:]}")
    return [n for n in done.stdout.splitlines() if only in n or n == "memory"]


def main() -> None:
    """Measure until all is done or the minutes are over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--only", default="", help="part of the names of sections")
    parser.add_argument("--output", type=Path, help="a file in place of one in benchmarks/results/")
    given = parser.parse_args()
    output = given.output or RESULTS / f"gpu-{date.today()}.jsonl"
    output.parent.mkdir(parents=True, exist_ok=True)
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as folder, output.open("a", encoding="utf-8") as file:

        def show(line: Line) -> None:
            lines.append(line)
            text = json.dumps(line)
            print(text, flush=True)
            file.write(text + "\n")
            file.flush()

        python = platform.python_version()
        show({"what": "run", "date": f"{date.today()}", "python": python, "layers": given.layers})
        command = [sys.executable, "-m", "benchmarks.gpu_sections", folder, f"{given.layers}"]
        Sections(command, LIMITS, show).run(names_of(given.only), 60 * given.minutes)
    print("\n".join(summary_lines(lines)))


if __name__ == "__main__":
    main()
