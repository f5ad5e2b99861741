"""Times the calls of one step in the order in which a step runs them.

A kernel that is run over and over finds its weights in a cache. In a step each layer's weights have
been pushed out by those of the others, so the whole step is run again and again, and what counts is
each call's median.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from ..ir.plan import Plan, evaluate_shape

if TYPE_CHECKING:
    from ..runtime.artifact import Artifact
    from ..runtime.binding import Bound
    from ..runtime.executor import Batch

SECONDS = 2.0  # of steps that are measured, within these counts
LEAST, MOST = 3, 100
Of = Callable[[Iterable[float]], float]


def step_times(
    artifact: Artifact, entry: str, dims: Mapping[str, int], of: Of = statistics.median
) -> list[float]:
    """Seconds of each call of a step of these dims, the median of several warm steps. On a machine
    that has other work, `of=min` tells more.
    """
    from ..runtime.binding import run_timed

    bound = _bound(artifact, entry, dims)
    run_timed(bound)
    runs = [run_timed(bound)]
    while len(runs) < min(MOST, max(LEAST, int(SECONDS / max(1e-9, sum(runs[0]))))):
        runs.append(run_timed(bound))
    return [of(times) for times in zip(*runs, strict=True)]


def _bound(artifact: Artifact, entry: str, dims: Mapping[str, int]) -> Bound:
    from ..runtime.executor import Executor, ModuleExecutor, available_memory
    from ..runtime.tensors import allocate

    artifact.weights.settle(available_memory() // 2, wait=True)
    if "decode" not in artifact.plan.entries:
        module = artifact.module
        assert isinstance(module, ModuleExecutor), f"{artifact} is not timed here"
        inputs = {s.name: allocate(s.dtype, evaluate_shape(s.shape, dims)) for s in module.inputs}
        return module.prepare(inputs, dims)
    executor = Executor(artifact.plan, artifact.library, artifact.weights, dims["C"], dims["N"])
    executor.fill_caches()
    return executor.prepare(example_batch(artifact.plan, dims))


def example_batch(plan: Plan, dims: Mapping[str, int]) -> Batch:
    """A step of N sequences of L tokens, T / N of each in this step, over blocks of their own."""
    from ..runtime.executor import Batch

    count, length = dims["N"], dims["L"]
    tokens, blocks = dims["T"] // count, -(-length // plan.block)
    tables = [list(range(n * blocks, (n + 1) * blocks)) for n in range(count)]
    places = range(length - tokens, length)
    slots = [t[p // plan.block] * plan.block + p % plan.block for t in tables for p in places]
    results = plan.entries["decode"].signature("result")
    vocabulary = next(plan.largest(s.shape)[-1] for s in results if s.name == "logits")
    return Batch(
        tokens=[(37 * i + 1) % vocabulary for i in range(count * tokens)],
        positions=[*places] * count,
        query_start=[n * tokens for n in range(count + 1)],
        context_length=[length] * count,
        block_table=tables,
        slots=slots,
        logit_rows=[n * tokens + tokens - 1 for n in range(count)],
        state_from=[n if length > tokens else -1 for n in range(count)],
        state_to=range(count),
    )
