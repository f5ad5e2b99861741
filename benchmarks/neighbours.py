"""Decode alone, beside busy processes, and idle: tokens a second, cores used, memory.

    python -m benchmarks.neighbours DIR [--tokens 80]

A neighbour is a process that counts; it may cost its share of the cores and no more. After the last
token the threads of kernels wait a moment by spinning and then sleep: what an idle second takes is
printed, and the memory of the process beside that of the weights.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ferrule.runtime.artifact import Artifact, load
from ferrule.runtime.sampling import SamplingParams

CACHE = 256 << 20


def main() -> None:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=80)
    given = parser.parse_args()
    artifact = load(given.folder, cache_bytes=CACHE, threads=999)
    rate(artifact, 20)
    print(f"alone: {rate(artifact, given.tokens):.1f} tokens/s, {artifact.library.threads} threads")
    for count in range(1, artifact.library.threads + 1):
        with neighbours(count):
            rate(artifact, 20)
            print(f"beside {count} busy: {rate(artifact, given.tokens):.1f} tokens/s")
    rate(artifact, given.tokens)
    for moment in ("first", "second"):
        print(f"the {moment} idle second: {idle_time():.3f} s of a core")
    over = peak_memory() - artifact.plan.weight_bytes - CACHE
    print(f"peak memory over weights and the whole cache: {over / 2**20:.0f} MiB")


def rate(artifact: Artifact, tokens: int) -> float:
    """Tokens a second of one sequence."""
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    begin = time.perf_counter()
    artifact.generate([1, 2, 3], params)
    return tokens / (time.perf_counter() - begin)


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """So many processes that keep a core busy each."""
    command = [sys.executable, "-c", "while True: pass"]
    running = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def idle_time() -> float:
    """Seconds of processor time that a second of doing nothing takes."""
    begin = time.process_time()
    time.sleep(1)
    return time.process_time() - begin


def peak_memory() -> int:
    """The most bytes that this process has had, mapped files among them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) << 10


if __name__ == "__main__":
    main()
