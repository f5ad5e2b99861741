"""Steps of a pooled model: the rows of ragged batches, as a language model's steps give logits.

Where no token reads a later one the steps are those of a language model, with its caches: prompts
are read in chunks, and their beginnings are found again. Where tokens do, a step has all of a
prompt, and nothing is cached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..codegen.backend import backend_of
from ..ir.graph import Graph
from ..runtime.artifact import WEIGHTS
from ..runtime.engine import Engine
from ..runtime.executor import StepRunner, context_limit
from ..runtime.manifest import write_manifest
from ..runtime.pooling import Pooling
from ..runtime.pools import Pools
from .build import Kernels, Options, imported_of, limits_of, manifest_fields, target_of, unverified
from .capture import prepared
from .check_parity import can_run, opened_runner
from .checkpoint import LiveWeights, Weights
from .console import progress
from .errors import CompileError
from .evaluator import evaluator, part_runner
from .models import Opened
from .parity import RANDOM_LENGTHS, blocks_needed, random_prompts, relative_error
from .pipeline import Recorder, Sizes, describing, raising, serving, whole_sequences
from .pooled_rows import PooledModel
from .report import Clock, build_report
from .writing import write_weights


@dataclass(frozen=True, eq=False)
class Steps:
    """A pooled model in serving form; `whole`: its steps have all tokens of a prompt."""

    graph: Graph
    weights: Weights
    sizes: Sizes
    whole: bool
    recorder: Recorder
    clock: Clock


def steps_of(opened: Opened, pooled: PooledModel, options: Options) -> Steps:
    """The serving form; raises CompileError or IRError where a model has none."""
    recorder, clock = Recorder(options.dump, options.stop_after), Clock()
    given = replace(opened, model=pooled.rows, weights=LiveWeights(pooled.rows))
    with progress(options.progress) as shown:
        shown.stage("capture", 2)
        imported, sizes = imported_of(given, options, clock, shown)
        weights = imported.weights
        values, parts = evaluator(weights), part_runner(weights)
        with clock("passes"):
            described = (*raising(parts), *describing(sizes, values))
            graph = recorder.run(imported.graph, described)
            whole = any(n.op.name == "attention" and not n["causal"] for n in graph.nodes())
            form = whole_sequences if whole else serving
            graph = recorder.run(graph, form(sizes, values))
    return Steps(graph, weights, sizes, whole, recorder, clock)


def write_steps(
    opened: Opened, pooled: PooledModel, steps: Steps, options: Options, folder: Path
) -> None:
    """Write the artifact's files into a folder, once its vectors are eager's."""
    target, recorder, clock = target_of(options), steps.recorder, steps.clock
    limits = limits_of(steps.sizes, steps.graph)
    with progress(options.progress) as shown:
        kernels = Kernels.of(
            steps.graph, backend_of(target), recorder, limits, recipe=options.recipe
        )
        reports = kernels.write(folder, target, clock, shown, options.records())
        with clock("weights"):
            path = folder / WEIGHTS
            write_weights(path, kernels.step, kernels.preparation, steps.weights, shown)
    vocabulary = int(opened.model.config.vocab_size)  # type: ignore[union-attr, arg-type]
    pooling = Pooling(
        pooled.kind, steps.whole, vocabulary, pooled.labels, pooled.activation, pooled.types
    )
    error = None
    if options.parity and can_run(target):
        with clock("parity"):
            error = _checked(opened, pooled, kernels, pooling, options, folder)
    report = build_report(recorder, reports, kernels.plan, clock)
    write_manifest(
        folder,
        manifest_fields(opened.name, target, steps.graph)
        | {
            "source": str(opened.folder.resolve()) if opened.folder else None,
            "dtype": opened.dtype,
            "limits": limits,
            "pooling": pooling.to_json() | {"relative_error": error},
            "report": report
            | {"unquantized": list(kernels.unquantized), "unverified": unverified(error, target)},
        },
    )


def _checked(
    opened: Opened,
    pooled: PooledModel,
    kernels: Kernels,
    pooling: Pooling,
    options: Options,
    folder: Path,
) -> float:
    """How far vectors of a ragged batch are from eager's, over their largest magnitude; raises
    CompileError where that is more than the weights' dtype and formats explain.
    """
    longest = context_limit(kernels.plan)
    prompts = random_prompts(pooling.token_ids, longest, RANDOM_LENGTHS)
    wanted = _eager(opened, pooled, prompts)
    pools = Pools(blocks_needed(prompts, kernels.plan.block), len(prompts))
    with opened_runner(folder, kernels.plan, pools, target_of(options)) as runner:
        given = vectors_of(runner, pooling, prompts)
    error = max(relative_error(w, g) for w, g in zip(wanted, given, strict=True))
    limit = options.tolerance(kernels.step, opened.dtype).relative
    if not error <= limit:
        raise CompileError(
            f"the vectors depart from eager's by {error:.3g} of their largest magnitude; at most "
            f"{limit:g} is wanted"
        )
    return error


def _eager(
    opened: Opened, pooled: PooledModel, prompts: Sequence[Sequence[int]]
) -> list[np.ndarray[Any, Any]]:
    with torch.no_grad(), prepared(opened.model):
        return [pooled.vector(torch.tensor([list(p)]))[0].numpy() for p in prompts]


def vectors_of(
    runner: StepRunner, pooling: Pooling, prompts: Sequence[Sequence[int]]
) -> list[np.ndarray[Any, Any]]:
    """The vectors that a runner gives of prompts, all asked for at once."""
    engine = Engine(runner, pooling=pooling)
    names = [engine.submit(prompt) for prompt in prompts]
    found: dict[str, np.ndarray[Any, Any]] = {}
    while engine.has_work:
        for delta in engine.step():
            if delta.error is not None:
                raise delta.error
            assert delta.vector is not None, f"{delta.request_id} ended by {delta.finish_reason}"
            found[delta.request_id] = delta.vector
    return [found[name] for name in names]
