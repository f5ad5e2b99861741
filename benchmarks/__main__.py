"""`make bench`: Ferrule beside Hugging Face eager, on random weights of a given shape.

    python -m benchmarks [--work DIR] [--rounds 5] [--prompt 512] [--new 64]

Compiles the shape from its checkpoint (seconds, peak memory), then runs both stacks in processes of
their own, alternating, after one warm-up each, with two threads; prints medians and ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from .checkpoints import LLAMA_1B, write_checkpoint
from .workers import STACKS, THREADS


@dataclass(frozen=True)
class Case:
    """One measurement: its name, tokens of the prompt, new tokens, sequences at once."""

    name: str
    prompt: int
    new: int
    sequences: int


class Worker:
    """A stack in a process of its own."""

    def __init__(self, stack: str, path: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.workers", stack, str(path)]
        env = os.environ | {"OMP_NUM_THREADS": str(THREADS)}
        self.name = stack
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        self.loaded = self._answer()["loaded"]

    def ask(self, case: Case) -> dict[str, float]:
        """Seconds of one run of a case."""
        assert self.process.stdin
        request = {"prompt": case.prompt, "new": case.new, "sequences": case.sequences}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with status {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def compile_shape(checkpoint: Path, artifact: Path) -> tuple[float, int]:
    """Seconds and peak bytes of compiling a checkpoint in a process of its own."""
    script = (
        "import sys, resource, ferrule; from pathlib import Path\n"
        "a = ferrule.compile(sys.argv[1], max_context=1024, max_batch=8, progress=False)\n"
        "a.save(sys.argv[2])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10)\n"
    )
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", script, str(checkpoint), str(artifact)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.perf_counter() - begin, int(done.stdout.split()[-1])


def alternate(workers: list[Worker], case: Case, rounds: int) -> dict[str, dict[str, float]]:
    """Medians of each stack over rounds in turn, after one warm-up each."""
    for worker in workers:
        worker.ask(case)
    taken: dict[str, list[dict[str, float]]] = {w.name: [] for w in workers}
    for _ in range(rounds):
        for worker in workers:
            taken[worker.name].append(worker.ask(case))
    return {
        n: {k: statistics.median(r[k] for r in runs) for k in runs[0]} for n, runs in taken.items()
    }


def report(case: Case, medians: dict[str, dict[str, float]]) -> list[str]:
    """Lines of the table for one case: tokens a second, and the ratio to Hugging Face eager."""
    lines: list[str] = []
    base = medians.get("hf-eager")
    for name, row in medians.items():
        prefill = case.prompt * case.sequences / row["prefill"]
        decode = (case.new - 1) * case.sequences / row["decode"]
        ratios = ["-", "-"]
        if base:
            ratios = [f"{base[k] / row[k]:.2f}" for k in ("prefill", "decode")]
        lines.append(
            f"| {case.name} | {name} | {prefill:.1f} | {ratios[0]} | {decode:.1f} | {ratios[1]} | "
            f"{row['peak_bytes'] / 2**30:.2f} |"
        )
    return lines


def main() -> None:
    """Make the checkpoint and the artifact where they are missing, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--stacks", nargs="+", default=list(STACKS), choices=list(STACKS))
    args = parser.parse_args()
    checkpoint, artifact = args.work / "llama-1b", args.work / "llama-1b-artifact"
    if not (checkpoint / "model.safetensors").exists():
        write_checkpoint(checkpoint, LLAMA_1B)
    print(f"{platform.processor() or platform.machine()}, {THREADS} threads, {time.strftime('%F')}")
    seconds, peak = compile_shape(checkpoint, artifact)
    weights = (artifact / "weights.safetensors").stat().st_size
    print(
        f"compile {seconds:.1f} s, peak {peak / 2**30:.2f} GiB, weights {weights / 2**30:.2f} GiB"
    )
    paths = {"ferrule": artifact, "hf-eager": checkpoint}
    workers = [Worker(stack, paths[stack]) for stack in args.stacks]
    for worker in workers:
        print(f"{worker.name} loaded in {worker.loaded:.2f} s")
    cases = [
        Case("one sequence", args.prompt, args.new, 1),
        Case("eight sequences", 64, args.new, 8),
    ]
    print("| case | stack | prefill tok/s | ratio | decode tok/s | ratio | peak GiB |")
    print("|---|---|---|---|---|---|---|")
    for case in cases:
        print("\n".join(report(case, alternate(workers, case, args.rounds))), flush=True)
    for worker in workers:
        worker.close()


if __name__ == "__main__":
    main()
