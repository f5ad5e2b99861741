"""Runs the eager model and the built one over the same prompts, one after the other, and compares
them.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from torch import nn

from ..ir.plan import Plan
from ..ir.target import Target
from ..runtime.artifact import KERNELS, WEIGHTS
from ..runtime.executor import Executor, StepRunner, context_limit
from ..runtime.library import KernelLibrary
from ..runtime.limits import ABSENT, Absent
from ..runtime.pools import Pools
from ..runtime.text import Text
from ..runtime.weights import Weights
from .console import Progress
from .eager import eager_logits, wide_logits
from .long_sequence import affordable_length
from .models import Opened
from .parity import (
    TOLERANCES,
    Parity,
    Rows,
    Tolerance,
    blocks_needed,
    built_rows,
    check,
    compare,
    eager_rows,
    faults_of,
    random_prompts,
    text_prompts,
    without,
)


def can_run(target: Target) -> bool:
    """Whether this machine can run what is built for a target."""
    if target.kind == "cpu":
        return True
    if target.kind != "cuda":
        return False
    from ..runtime.cuda.opening import has_device

    return has_device(target.arch)


def check_parity(
    opened: Opened,
    folder: Path,
    plan: Plan,
    shown: Progress,
    tolerance: Tolerance | None,
    target: Target,
    absent: Absent = ABSENT,
) -> Parity:
    """The comparison; raises CompileError where it is beyond the tolerance, the dtype's by
    default.
    """
    parity = measure_parity(opened, folder, plan, shown, tolerance, target, absent)
    check(parity, opened.dtype, tolerance)
    return parity


def measure_parity(
    opened: Opened,
    folder: Path,
    plan: Plan,
    shown: Progress,
    tolerance: Tolerance | None,
    target: Target,
    absent: Absent = ABSENT,
) -> Parity:
    """How far the kernels in a folder depart from the eager model, on text where there is a
    tokenizer. A build beyond the tolerance of an eager model in half precision, whose own rounding
    may be as large (a router that is nearly undecided flips), is compared with it in float32.
    """
    sequences = parity_prompts(folder, plan)
    sequences += long_prompts(opened.model, plan, max(map(len, sequences)))
    sequences = without(absent, sequences)
    with eager_logits(opened.model, opened.weights) as logits:
        eager = eager_rows(logits, sequences)
    # What eager read leaves memory before the artifact's weights are mapped.
    opened.weights.release()
    gc.collect()
    shown.step("eager")
    rows = built(folder, plan, sequences, target)
    shown.step("built")
    allowed = tolerance or TOLERANCES[opened.dtype]
    found = compare(eager, rows, allowed.relative)
    if not faults_of(found, allowed) or opened.dtype not in ("bf16", "f16"):
        return found
    with wide_logits(opened.model, opened.weights) as logits:
        wide = eager_rows(logits, sequences)
    opened.weights.release()
    own = compare(wide, eager, allowed.relative)
    return replace(compare(wide, rows, allowed.relative), own=own)


def built(folder: Path, plan: Plan, sequences: Sequence[Sequence[int]], target: Target) -> Rows:
    """The logits at the compared positions by the kernels in a folder."""
    pools = Pools(blocks_needed(sequences, plan.block), len(sequences))
    with opened_runner(folder, plan, pools, target) as runner:
        return built_rows(runner, sequences)


@contextmanager
def opened_runner(folder: Path, plan: Plan, pools: Pools, target: Target) -> Iterator[StepRunner]:
    """What runs steps by the kernels in a folder, here or on the device at hand."""
    weights = Weights(folder / WEIGHTS)
    if target.kind == "cpu":
        library = KernelLibrary(folder / KERNELS)
        yield Executor(plan, library, weights, pools.blocks, pools.states)
        return
    from ..runtime.cuda.device import CudaDevice
    from ..runtime.cuda.opening import open_executor

    executor = open_executor(folder, plan, weights, CudaDevice(), pools)
    try:
        yield executor
    finally:
        executor.close()


def parity_prompts(folder: Path, plan: Plan) -> list[list[int]]:
    """The prompts that an artifact is compared on, as token ids within its limits."""
    vocabulary, limit = vocabulary_of(plan), context_limit(plan)
    home = folder / "tokenizer"
    if (home / "tokenizer.json").is_file():
        return text_prompts(Text(home).encode, vocabulary, limit)
    return random_prompts(vocabulary, limit)


def long_prompts(model: nn.Module, plan: Plan, shorter: int) -> list[list[int]]:
    """One sequence as long as an artifact serves, or as eager can be asked for, of random tokens;
    none where it is no longer than the others.
    """
    length = affordable_length(model, context_limit(plan))
    return random_prompts(vocabulary_of(plan), length, (length,)) if length > shorter else []


def vocabulary_of(plan: Plan) -> int:
    """How many tokens there are: the last dim of the logits."""
    entry = next(iter(plan.entries.values()))
    size = next(s.shape[-1] for s in entry.signature("result") if s.name == "logits")
    assert isinstance(size, int), f"logits over {size} tokens"
    return size
