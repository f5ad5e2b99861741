"""The limits of the machine at hand, measured in a process of its own.

    python -m benchmarks.limits TARGET THREADS

prints them as JSON: bytes a second that the cores read, operations a second by dtype.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

from ferrule.compiler.hardware import Hardware, measure
from ferrule.ir.target import Target

# What matrices of a format are multiplied in at best: few bits go through 8-bit dot products.
MULTIPLIED_IN = {"bf16": "bf16", "int8": "i8", "int4": "i8"}


def measured(target: str, threads: int) -> Hardware:
    """The limits for code of a target on so many threads; takes some seconds."""
    command = [sys.executable, "-m", "benchmarks.limits", target, str(threads)]
    env = os.environ | {"TVM_NUM_THREADS": str(threads)}  # its own guess halves the cores
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        raise SystemExit(f"the limits of {target} were not measured:\n{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Hardware(target, found["read_bandwidth"], found["peak"])


def best(first: Hardware, second: Hardware) -> Hardware:
    """The higher rate of each kind: a limit is what the machine was seen to do."""
    peak = {dtype: max(rate, second.peak[dtype]) for dtype, rate in first.peak.items()}
    reads = max(first.read_bandwidth, second.read_bandwidth)
    return replace(first, read_bandwidth=reads, peak=peak)


def line(found: Hardware) -> str:
    """The limits as one line of a report."""
    peaks = ", ".join(f"{rate / 1e12:.2f} T{dtype}/s" for dtype, rate in found.peak.items())
    return f"{found.fingerprint}: reads {found.read_bandwidth / 1e9:.1f} GB/s, computes {peaks}"


def main() -> None:
    """Measure and print."""
    target = replace(Target.parse(sys.argv[1]), cores=int(sys.argv[2]))
    found = measure(target)
    print(json.dumps({"read_bandwidth": found.read_bandwidth, "peak": found.peak}))


if __name__ == "__main__":
    main()
