"""`ferrule bench latency | throughput | startup`: an artifact without a server."""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..artifact import Artifact
from ..sampling import SamplingParams
from .prompts import Ask
from .statistics import percentiles_of


def latency(
    artifact: Artifact, asks: Sequence[Ask], *, iterations: int, warmups: int
) -> dict[str, Any]:
    """Seconds to complete one batch, over and over."""
    for _ in range(warmups):
        _complete(artifact, asks)
    seconds = [_timed(artifact, asks) for _ in range(iterations)]
    return {
        "avg_latency": float(np.mean(seconds)),
        "latencies": seconds,
        "percentiles": percentiles_of(seconds),
    }


def throughput(artifact: Artifact, asks: Sequence[Ask]) -> dict[str, Any]:
    """Requests and tokens a second where all requests are there from the start."""
    begun = time.perf_counter()
    prompt, output = _complete(artifact, asks)
    elapsed = time.perf_counter() - begun
    return {
        "elapsed_time": elapsed,
        "num_requests": len(asks),
        "total_num_tokens": prompt + output,
        "requests_per_second": len(asks) / elapsed,
        "tokens_per_second": (prompt + output) / elapsed,
        "output_tokens_per_second": output / elapsed,
    }


def startup(directory: Path, *, iterations: int) -> dict[str, Any]:
    """Seconds from a fresh process to a first token.

    Cold hashes every file of the artifact, as a first start does; warm trusts them. Nothing is
    compiled in either, which `compilation_time` says.
    """
    found: dict[str, Any] = {}
    for kind, verify in (("cold", True), ("warm", False)):
        runs = [_start(directory, verify=verify) for _ in range(iterations)]
        found |= {
            f"{kind}_total_startup_time": [total for total, _ in runs],
            f"{kind}_load_time": [load for _, load in runs],
            f"avg_{kind}_total_startup_time": float(np.mean([total for total, _ in runs])),
        }
    return found | {"compilation_time": 0.0, "encoder_compilation_time": 0.0}


def vocabulary_of(artifact: Artifact) -> int:
    """How many token ids the model's logits tell apart."""
    signature = artifact.plan.entries["decode"].signature("result")
    return artifact.plan.largest(next(s.shape for s in signature if s.name == "logits"))[-1]


_FIRST_TOKEN = """
import sys, time
begun = time.perf_counter()
from {package}.artifact import load
from {package}.sampling import SamplingParams
artifact = load(sys.argv[1], verify=sys.argv[2] == "True")
artifact.generate([[1]], SamplingParams(temperature=0.0, max_tokens=1))
print(time.perf_counter() - begun)
"""


def _start(directory: Path, *, verify: bool) -> tuple[float, float]:
    """Seconds of the whole process, and those of them after the interpreter's own start."""
    program = _FIRST_TOKEN.format(package=__name__.rsplit(".", 2)[0])
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program, str(directory), str(verify)],
        capture_output=True,
        text=True,
        check=False,
    )
    total = time.perf_counter() - begun
    if done.returncode != 0:
        raise RuntimeError(f"the artifact does not start: {done.stderr.strip()[-500:]}")
    return total, float(done.stdout)


def _timed(artifact: Artifact, asks: Sequence[Ask]) -> float:
    begun = time.perf_counter()
    _complete(artifact, asks)
    return time.perf_counter() - begun


def _complete(artifact: Artifact, asks: Sequence[Ask]) -> tuple[int, int]:
    """Complete all at once; tokens of prompts and of outputs."""
    params = [
        SamplingParams(temperature=0.0, max_tokens=ask.output_tokens, ignore_eos=True)
        for ask in asks
    ]
    done = artifact.generate([ask.prompt for ask in asks], params)
    return sum(len(d.prompt_token_ids) for d in done), sum(len(d.token_ids) for d in done)
