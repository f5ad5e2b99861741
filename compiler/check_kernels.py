"""Compares every kernel of a step with the reference value of its body, on the inputs that the
kernel had.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..codegen.backend import KernelBody
from ..ir.node import Node
from ..ir.ops.serving import updated
from ..ir.plan import Argument, Call
from ..ir.types import CacheType
from ..runtime.executor import Executor
from .parity import relative_error, step_batch
from .reference import evaluate
from .reference.context import DTYPES
from .replay import prefill

if TYPE_CHECKING:
    from ..runtime.artifact import Artifact

# i8: a value between two codes may take either, which is one step of 127.
TOLERANCES = {"f64": 1e-9, "f32": 1e-3, "f16": 2e-2, "bf16": 4e-2, "i8": 1e-2}
Departure = tuple[str, float, float]  # (which call, relative error, what it may be)


def kernel_departures(
    artifact: Artifact, bodies: Mapping[str, KernelBody], sequences: Sequence[Sequence[int]]
) -> Iterator[Departure]:
    """The error of each call of a prefill step, then of a decode step of one more token."""
    plan = artifact.plan
    blocks = sum(-(-(len(s) + 1) // plan.block) for s in sequences) * len(sequences)
    executor = Executor(plan, artifact.library, artifact.weights, blocks, len(sequences))
    longer = [[*s, s[0]] for s in sequences]
    group = list(range(len(sequences)))
    spans = [(len(s), len(s) + 1) for s in sequences]
    decode = step_batch(plan.block, longer, range(len(sequences)), group, spans)
    for name, batch in (("mixed", prefill(sequences, plan.block)), ("decode", decode)):
        for at, (kernel, tensors, call) in enumerate(executor.prepare(batch).calls):
            where = f"{name} call {at}: kernel {call.kernel} ({call.ops}) from {call.origin}"
            error, tolerance = _departure(kernel, tensors, call, bodies[call.kernel])
            yield where, error, tolerance


def _departure(kernel: Any, tensors: Any, call: Call, made: KernelBody) -> tuple[float, float]:
    """Run one call; its largest error over all results, and the tolerance of the dtype that has
    it.
    """
    body = made.body
    arrays = [np.from_dlpack(t) for t in tensors]
    count = len(body.inputs)
    given = [as_torch(a, g) for a, g in zip(arrays[:count], call.arguments, strict=False)]
    wanted = evaluate(body, given, {})
    kernel(*tensors)
    places = iter(range(count, len(arrays)))
    errors = []
    for output, value in zip(body.outputs, wanted, strict=True):
        in_place = isinstance(output.type, CacheType)
        at = body.inputs.index(_cache(output)) if in_place else next(places)
        result = as_torch(arrays[at], call.arguments[at])
        errors.append(relative_error(value.double().numpy(), result.double().numpy()))
    # The coarsest dtype decides: a kernel keeps more digits between its ops than its body does.
    tolerance = max(TOLERANCES.get(a.dtype, 0.0) for a in call.arguments)
    return max(errors), tolerance


def _cache(output: Node) -> Node:
    """The input of a body that an output is an update of."""
    cache, _ = updated(output)
    assert cache is not None, output
    return cache


def as_torch(array: Any, argument: Argument) -> torch.Tensor:
    """A copy of a kernel's array with the dtype that the plan says it has."""
    if argument.dtype == "u4":
        both = np.stack([array & 15, array >> 4], -1)  # low bits first
        size = argument.shape[-1]
        assert isinstance(size, int), argument
        return torch.from_numpy(both.reshape(*array.shape[:-1], -1)[..., :size].copy())
    wanted = DTYPES[argument.dtype]
    return torch.from_numpy(array.copy()).view(wanted)
