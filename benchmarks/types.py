"""Model types: a mid-sized model of each, in the formats that users serve, beside what the machine
allows.

    python -m benchmarks.types [TYPE ...] [--formats int4 int8 bf16] [--worst 4] [--make]

Of each type and format: a decode step of one sequence and of eight, each behind 512 tokens, and a
prefill of 512; tokens a second, and the share of the roofline's time (of all kernels, each by the
bytes it has to move and the operations it has to do) in the time that the kernels took. Times are
the least of several: what counts is the kernels, not what else the machine does. Under a step
stand the kernels that lose most. `--make` builds the artifacts, kept in the work folder by what
made them, and measures nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ferrule.compiler.errors import CompileError
from ferrule.compiler.explain import Load, explain
from ferrule.compiler.roofline import KernelLine, StepLines
from ferrule.ir.errors import IRError
from ferrule.runtime.artifact import Artifact, load
from ferrule.runtime.engine import Engine
from ferrule.runtime.options import EngineOptions
from ferrule.runtime.sampling import SamplingParams

import ferrule

from .mid_sizes import SIZES
from .models import COMPILER
from .stacks import ROOT

if TYPE_CHECKING:
    from torch import nn

FORMATS = {"bf16": None, "int8": "int8", "int4": "int4"}
CONTEXT, TOKENS = 512, 24


@dataclass(frozen=True)
class Step:
    """What is measured: an entry, and how many sequences."""

    name: str
    entry: str
    sequences: int

    @property
    def tokens(self) -> int:
        """The tokens that a step gives or reads."""
        return self.sequences if self.entry == "decode" else CONTEXT


STEPS = (Step("tg", "decode", 1), Step("tg x8", "decode", 8), Step("pp512", "mixed", 1))


def mid_sized(kind: str, seed: int = 0) -> nn.Module:
    """A model of a type in bfloat16 with random weights, the same for the same seed."""
    import torch
    from ferrule.compiler.zoo_models import randomize
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **SIZES[kind])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return randomize(model.eval(), seed)


def artifact_of(kind: str, form: str, work: Path, *, old: bool = False) -> Artifact:
    """A type's artifact in a format, from the work folder where the same compiler, or with `old`
    any, made it before.

    It is held against eager, but for 4 bits: random weights do not bear it.
    """
    folder = work / f"{kind}-{form}-{_digest(kind)}"
    found = list(work.glob(f"{kind}-{form}-*"))
    if old and found:
        folder = found[0]
    if not folder.is_dir():
        for each in found:
            shutil.rmtree(each)
        made = ferrule.compile(
            mid_sized(kind),
            quantize=FORMATS[form],
            max_context=CONTEXT + 64,
            max_batch=8,
            parity=form != "int4",
            progress=False,
        )
        made.save(folder)
    return load(folder)


def _digest(kind: str) -> str:
    """What tells artifacts apart: the sizes, and the compiler."""
    found = hashlib.sha256(json.dumps(SIZES[kind], sort_keys=True).encode())
    for path in (p for f in COMPILER for p in sorted((ROOT / f).rglob("*.py"))):
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


def step_seconds(artifact: Artifact, step: Step) -> float:
    """The least time of an engine's step: behind CONTEXT tokens, or for a prompt of as many."""
    options = EngineOptions(prefix_caching=False)
    times: list[float] = []
    begun = time.perf_counter()
    while not times or (step.entry == "mixed" and time.perf_counter() - begun < 2.0):
        engine = artifact.new_engine(options)
        times += list(_times(engine, step))
    return min(times)


def _times(engine: Engine, step: Step) -> Iterator[float]:
    prompts = step.entry == "mixed"
    count = 1 if prompts else TOKENS
    params = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
    for n in range(step.sequences):
        engine.submit([3 + (7 * i + n) % 997 for i in range(CONTEXT)], params)
    while engine.has_work:
        begin = time.perf_counter()
        fresh = engine.step()
        if len(fresh) == step.sequences:
            yield time.perf_counter() - begin


def print_type(kind: str, form: str, artifact: Artifact, worst: int) -> None:
    """A line for each step, and lines of its worst kernels."""
    for step in STEPS:
        seconds = step_seconds(artifact, step)
        given = Load(step.tokens, step.sequences, CONTEXT)
        (found,) = explain(artifact, entry=step.entry, load=given, of=min).steps
        print(
            f"{kind:14}{form:6}{step.name:6}{step.tokens / seconds:10.1f} tokens/s "
            f"{seconds * 1e3:9.3f} ms, kernels {(found.seconds or 0) * 1e3:9.3f} "
            f"({found.count}), limit {(found.limit or 0) * 1e3:8.3f}, "
            f"{found.ratio or 0:5.0%} of it by kernels, {(found.limit or 0) / seconds:5.0%} in all",
            flush=True,
        )
        for line in losing(found)[:worst]:
            print(f"    {_line(line, found)}", flush=True)


def losing(found: StepLines) -> list[KernelLine]:
    """The kernels by what they take beyond what the machine allows, most first."""
    return sorted(found.kernels, key=lambda k: (k.limit or 0.0) - (k.seconds or 0.0))


def _line(line: KernelLine, step: StepLines) -> str:
    lost = (line.seconds or 0.0) - (line.limit or 0.0)
    return (
        f"{lost / (step.seconds or 1.0):5.0%} lost: {line.kernel} x{line.count} {line.template} "
        f"{(line.seconds or 0) * 1e6:8.1f} us of {(line.limit or 0) * 1e6:7.1f} ({line.bound}) "
        f"{line.ops[:70]}"
    )


def main() -> None:
    """Make and measure what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("types", nargs="*", metavar="TYPE", default=list(SIZES))
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--work", type=Path, default=Path("build/bench/types"))
    parser.add_argument("--worst", type=int, default=4)
    parser.add_argument("--make", action="store_true")
    parser.add_argument("--old", action="store_true", help="measure what an earlier compiler made")
    given = parser.parse_args()
    if unknown := sorted({*given.types} - {*SIZES}):
        parser.error(f"no type {', '.join(unknown)}; wanted some of {', '.join(SIZES)}")
    given.work.mkdir(parents=True, exist_ok=True)
    for kind in given.types:
        for form in given.formats:
            try:
                artifact = artifact_of(kind, form, given.work, old=given.old)
            except (CompileError, IRError) as error:
                print(f"{kind:14}{form:6}does not compile: {error}", flush=True)
                continue
            if not given.make:
                print_type(kind, form, artifact, given.worst)


if __name__ == "__main__":
    main()
