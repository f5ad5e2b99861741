"""Checks and times a GPU: `python -m benchmarks.gpu [--layers 32] [--minutes 9] [--sections ...]`.

First the device and what its memory gives, then groups of sections, each by its name:

    kernels   linears beside cuBLAS, attention over a prompt beside SDPA's flash kernel
    model     a model of the shape of Llama 3.1 8B with random bfloat16 weights, compiled for the
              device at hand: its logits beside eager's, decode steps of several batches against the
              bandwidth, prefill, start to first token in a process of its own, steps call by call
    int4      the same weights in 4 bits
    peers     a compiled loop in plain torch recorded as a CUDA graph, and transformers with a
              static cache and torch.compile
    tests     the tests that need a GPU
    tuned     the model's artifact after `ferrule tune`
    choices   single linears with every choice of template and tiles that the cost model leaves

`--sections kernels,model` runs some of them; parts of the names of single sections will do. Two
calls may share the work: `--before FILE` takes what an earlier one found for the second's summary,
in which what is asked of a GPU stands beside what was measured.

One JSON line a figure, printed and written to benchmarks/results/ as soon as it is there, a verdict
behind each figure that is asked for, and all verdicts so far in a file .txt beside. Sections run in
a process of their own (gpu_worker.py): one that fails says so, one that takes its device with it or
does not end is given up, and the rest goes on; what does not begin within the minutes is named as
left out.
"""

from __future__ import annotations

import argparse
import json
import platform
import signal
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from .gpu_summary import summary_lines, verdicts
from .gpu_worker import ROOT, Line, Sections

RESULTS = Path(__file__).parent / "results"
LIMITS = {"": 75.0, "build": 200.0, "build int4": 200.0, "tests": 240.0, "tune": 150.0}
COMPILED = ("decode 1", "decode 32", "decode 128", "prefill 2048", "prefill 8192")
LIMITS |= {f"transformers {kind}": 150.0 for kind in COMPILED}
"""Seconds of a section without a line, after which it is given up."""


def names_of(asked: str) -> list[str]:
    """The sections of groups, or whose names hold a text, of a list with commas, all of them where
    it is empty; and the first, which finds the device.
    """
    code = "from benchmarks.gpu_sections import Bench, sections; from pathlib import Path; "
    code += "print(*(f'{s.group}:{s.name}' for s in sections(Bench(Path(), 1))), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"benchmarks.gpu: {done.stderr[-800:]}")
    known = [line.partition(":")[::2] for line in done.stdout.splitlines()]
    words = [w.strip() for w in asked.split(",") if w.strip()]
    groups = {group for group, _ in known}
    if wrong := [w for w in words if w not in groups and not any(w in name for _, name in known)]:
        raise SystemExit(f"--sections {wrong[0]!r}: wanted one of {', '.join(sorted(groups))}")
    return [
        name
        for group, name in known
        if name == "memory" or not words or any(_is_meant(w, group, name, groups) for w in words)
    ]


def _is_meant(word: str, group: str, name: str, groups: set[str]) -> bool:
    return word == group if word in groups else word in name


def read_lines(paths: list[Path]) -> list[Line]:
    """The lines of earlier calls."""
    return [json.loads(line) for path in paths for line in path.read_text().splitlines() if line]


def known_of(lines: list[Line]) -> Line:
    """What sections would have noted of earlier lines: seconds of decode steps and of prompts."""

    def taken(kind: str, figure: str) -> dict[str, float]:
        found = {}
        for line in lines:
            what, _, size = str(line.get("what", "")).rpartition(" ")
            if what == kind and "seconds" in line:
                found[figure.format(size)] = line["seconds"]
        return found

    return {"decoded": taken("decode", " {}"), "prefilled": taken("prefill", "{}")}


def main() -> None:
    """Measure until all is done or the minutes are over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--sections", default="", help="groups, or parts of names, with commas")
    parser.add_argument("--before", type=Path, action="append", default=[], help="earlier lines")
    parser.add_argument("--output", type=Path, help="a file in place of one in benchmarks/results/")
    given = parser.parse_args()
    output = given.output or RESULTS / f"gpu-{date.today()}.jsonl"
    output.parent.mkdir(parents=True, exist_ok=True)
    summary = output.with_suffix(".txt")
    # Whoever ends this ends the process of the sections too, which has the device.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    lines = read_lines(given.before)
    with tempfile.TemporaryDirectory() as folder, output.open("a", encoding="utf-8") as file:

        def show(line: Line) -> None:
            lines.append(line)
            text = json.dumps(line)
            print(text, flush=True)
            file.write(text + "\n")
            file.flush()
            for said in verdicts(line):
                print(said, flush=True)
            summary.write_text("\n".join(summary_lines(lines)) + "\n", encoding="utf-8")

        python = platform.python_version()
        (Path(folder) / "known.json").write_text(json.dumps(known_of(lines)))
        show({"what": "run", "date": f"{date.today()}", "python": python, "layers": given.layers})
        command = [sys.executable, "-m", "benchmarks.gpu_sections", folder, f"{given.layers}"]
        Sections(command, LIMITS, show).run(names_of(given.sections), 60 * given.minutes)
    print("\n".join(summary_lines(lines)))


if __name__ == "__main__":
    main()
