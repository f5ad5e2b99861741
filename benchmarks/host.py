"""Host time of decode steps: all that is not a kernel, measured with kernels that do nothing.

    python -m benchmarks.host DIR [--sequences 1 8 32] [--profile]

Scheduler, executor, engine, sampler and detokenization run as they are; each kernel is a Python
function that returns at once, and its call counts. What is printed is the median of steps in
milliseconds, of the thread's own time.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from ferrule.ir.plan import Plan
from ferrule.runtime.artifact import PLAN, WEIGHTS
from ferrule.runtime.engine import Engine
from ferrule.runtime.executor import Executor
from ferrule.runtime.params import SamplingParams
from ferrule.runtime.text import Text
from ferrule.runtime.weights import Weights

STEPS = 300


class Idle:
    """A library whose kernels do nothing."""

    crew = nullcontext()

    def __getitem__(self, name: str) -> Callable[..., None]:
        return _nothing

    def call_list(self, calls: object) -> None:
        """Each kernel is called by itself."""

    def enter_thread(self) -> None:
        """Nothing to enter."""


def _nothing(*tensors: object) -> None:
    pass


def decoding(folder: Path, sequences: int, prompt: int = 100) -> Engine:
    """An engine over idle kernels, its sequences past their prompts."""
    plan = Plan.from_json((folder / PLAN).read_bytes())
    blocks = sequences * -(-(prompt + STEPS + 20) // plan.block) + 1
    runner = Executor(plan, Idle(), Weights(folder / WEIGHTS), blocks)
    tokenizer = folder / "tokenizer"
    text = Text(tokenizer) if (tokenizer / "tokenizer.json").is_file() else None
    engine = Engine(runner, text)
    params = SamplingParams(temperature=0.0, max_tokens=STEPS + 10, ignore_eos=True)
    for number in range(sequences):
        engine.submit([number + 1] * prompt, params)
    while any(s.pending > 1 for s in engine.scheduler.sequences()):
        engine.step()
    return engine


def step_seconds(engine: Engine) -> float:
    """The median of a few hundred steps."""
    times = []
    for _ in range(STEPS):
        begin = time.thread_time()
        engine.step()
        times.append(time.thread_time() - begin)
    return statistics.median(times)


def main() -> None:
    """Print a line for each number of sequences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sequences", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    for sequences in given.sequences:
        engine = decoding(given.folder, sequences)
        if given.profile:
            with cProfile.Profile() as profile:
                step_seconds(engine)
            pstats.Stats(profile).sort_stats("tottime").print_stats(25)
        else:
            print(f"{sequences} sequences: {step_seconds(engine) * 1e3:.3f} ms a step")


if __name__ == "__main__":
    main()
