"""Recurrent models: the time of a token by the length before it, and the scan kernel alone.

    python -m benchmarks.recurrent DIR [--lengths 100 1000 4000]    an artifact
    python -m benchmarks.recurrent --scan                           kernels, of random states

Of an artifact the tokens are decoded behind prompts of each length, one sequence at a time: without
attention the time of a token is the same behind all. Of the scan the states that decode reads and
writes are walked through in turn, so that they come from memory.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tvm
from ferrule.codegen.backend import KernelBody
from ferrule.codegen.tvm import build_library
from ferrule.ir.dims import dim, substitute
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node, input_, item
from ferrule.ir.ops import recurrent
from ferrule.ir.target import Target
from ferrule.ir.types import CacheType, TensorType
from ferrule.runtime.artifact import Artifact, load
from ferrule.runtime.options import EngineOptions
from ferrule.runtime.sampling import SamplingParams

TOKENS = 48
SECONDS = 2.0


@dataclass(frozen=True)
class Case:
    """A scan: heads, groups of q and k, rows and columns of a state, decays of a head, whether by
    the delta rule.
    """

    heads: int
    groups: int
    rows: int
    columns: int
    decays: int = 1
    delta: bool = False

    @property
    def state(self) -> tuple[int, int, int]:
        """The shape of a sequence's state."""
        return self.heads, self.rows, self.columns


CASES = {
    "mamba2 1.3b": Case(64, 1, 128, 64),
    "gated delta 128x128": Case(32, 16, 128, 128, delta=True),
    "kimi delta 128x128": Case(32, 32, 128, 128, decays=128, delta=True),
    "mamba 4096x16": Case(4096, 1, 16, 1, decays=16),
}


def decode_seconds(artifact: Artifact, length: int) -> float:
    """The median time of a token behind a prompt of so many tokens."""
    engine = artifact.new_engine(EngineOptions(prefix_caching=False))
    params = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
    engine.submit([3 + i % 97 for i in range(length)], params)
    times: list[float] = []
    while engine.has_work:
        begin = time.perf_counter()
        if any(delta.token_ids for delta in engine.step()):
            times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def body_of(case: Case) -> Graph:
    """A state_scan of a case, over float32."""
    t, n = dim("T"), dim("N")
    shapes = {
        "q": (t, case.groups, case.rows),
        "k": (t, case.groups, case.rows),
        "v": (t, case.heads, case.columns),
        "g": (t, case.heads, case.decays),
        "b": (t, case.heads),
    }
    wanted = [name for name in shapes if name != "b" or case.delta]
    q, k, v, g, *beta = (input_(name=name, type=TensorType("f32", shapes[name])) for name in wanted)
    kind = CacheType("f32", 0, case.state)
    state = input_(name="state", type=kind)
    places = [
        input_(name=name, type=TensorType("i32", (size,)))
        for name, size in (("starts", n + 1), ("source", n), ("target", n))
    ]
    made = recurrent.state_scan(q, k, v, g, state, *places, *beta)
    inputs = (q, k, v, g, state, *places, *beta)
    return Graph("scan", inputs, (item(made, index=0), item(made, index=1)))


def scan_seconds(case: Case, tokens: int, states: int = 64) -> float:
    """The least time of a step of one sequence: other work on the machine only adds to it."""
    body = body_of(case)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.so"
        report = build_library({"scan": KernelBody(body)}, Target.parse("cpu"), path)
        kernel = tvm.runtime.load_module(str(path))[report["scan"].function]
    drawn = np.random.default_rng(0)
    sizes = {"T": tokens, "N": 1}

    def tensor(node: Node) -> tvm.runtime.Tensor:
        shape = [int(substitute(d, sizes)) for d in node.shape]
        values = drawn.standard_normal(shape).astype(np.float32) / 12
        return tvm.runtime.tensor(-np.abs(values) if node["name"] == "g" else values)

    held = tvm.runtime.tensor(np.zeros((states, *case.state), np.float32))
    starts = tvm.runtime.tensor(np.array([0, tokens], np.int32))
    places = [tvm.runtime.tensor(np.array([n], np.int32)) for n in range(states)]
    before, beta = [tensor(i) for i in body.inputs[:4]], [tensor(i) for i in body.inputs[8:]]
    result = tvm.runtime.tensor(np.zeros((tokens, case.heads, case.columns), np.float32))
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < 5 or time.perf_counter() < end:
        at = places[len(times) % states]
        begin = time.perf_counter()
        kernel(*before, held, starts, at, at, *beta, result)
        times.append(time.perf_counter() - begin)
    return min(times)


def print_scans() -> None:
    """A line for each case and step."""
    for name, case in CASES.items():
        nbytes = 4 * case.heads * case.rows * case.columns
        operations = (6 if case.delta else 4) * case.heads * case.rows * case.columns
        for tokens in (1, 64):
            seconds = scan_seconds(case, tokens)
            print(
                f"{name:24}{tokens:4} tokens {seconds * 1e6:10.1f} us "
                f"{2 * nbytes / seconds / 1e9:7.2f} GB/s of states "
                f"{tokens * operations / seconds / 1e9:8.1f} GFLOP/s"
            )


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--lengths", type=int, nargs="+", default=[100, 1000, 4000])
    parser.add_argument("--scan", action="store_true")
    given = parser.parse_args()
    if given.scan:
        print_scans()
    if given.folder is not None:
        artifact = load(given.folder)
        print(f"state of a sequence: {artifact.plan.state_bytes:,} bytes at any length")
        print(f"KV cache of a token: {artifact.plan.token_bytes:,} bytes")
        for length in given.lengths:
            seconds = decode_seconds(artifact, length)
            print(f"behind {length:6,} tokens: {seconds * 1e3:.3f} ms a token")


if __name__ == "__main__":
    main()
