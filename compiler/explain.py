"""`ferrule explain`: every kernel of a step, what it does, where in the model it came from, and
what it costs.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ir.errors import IRError
from ..ir.plan import Call, Plan, dims_of, evaluate_dim, evaluate_shape, tensor_bytes

if TYPE_CHECKING:
    from ..runtime.artifact import Artifact
    from ..runtime.binding import Bound

CONTEXT = 64  # tokens before a decode step, and of a mixed one, where limits allow
REPEATS = 7
_NUMBER = re.compile(r"\.\d+(?=[. ])")
Dims = Mapping[str, int]


@dataclass(frozen=True)
class KernelLine:
    """One kernel of an entry: `count` calls in a step; bytes, operations and seconds are those of
    all its calls.

    Bytes are what a call reads and writes (of a table that is indexed, the rows taken);
    operations count a multiply-add as two. `dims` are the sizes that the figures are for.
    """

    entry: str
    kernel: str
    template: str
    ops: str
    origin: str
    count: int
    nbytes: int
    operations: int
    seconds: float | None
    dims: Dims

    def to_json(self) -> dict[str, Any]:
        """The line by names."""
        return asdict(self)


def explain_artifact(
    folder: Path, *, entry: str | None = None, measure: bool = True
) -> list[KernelLine]:
    """The kernels of an artifact's entries, in the order of first use."""
    from ..runtime.artifact import load

    return explain(load(folder), entry=entry, measure=measure)


def explain(
    artifact: Artifact, *, entry: str | None = None, measure: bool = True
) -> list[KernelLine]:
    """The kernels of the entries of an opened artifact; times are the medians of a few runs of
    one step.
    """
    entries = artifact.plan.entries
    if entry is not None and entry not in entries:
        raise IRError(f"no entry {entry!r}; the artifact has {', '.join(entries)}")
    lines: list[KernelLine] = []
    for name in entries if entry is None else [entry]:
        dims = example_dims(artifact.plan, name)
        seconds = _measured(artifact, name, dims) if measure else None
        lines += _lines(artifact.plan, artifact.manifest, name, dims, seconds)
    return lines


def example_dims(plan: Plan, entry: str) -> dict[str, int]:
    """The sizes of the step that figures are given for: one sequence of CONTEXT tokens."""
    if "M" not in plan.dims:
        return {name: high for name, (_, high) in plan.dims.items()}
    tokens = 1 if entry == "decode" else min(CONTEXT, plan.dims["T"][1])
    context = min(CONTEXT, plan.dims["M"][1] * plan.block)
    blocks = -(-context // plan.block)
    return {"T": tokens, "N": 1, "R": 1, "M": blocks, "C": blocks}


def _lines(
    plan: Plan, manifest: Mapping[str, Any], entry: str, dims: Dims, seconds: list[float] | None
) -> list[KernelLine]:
    kernels = manifest.get("report", {}).get("kernels", {})
    found: dict[str, KernelLine] = {}
    for at, call in enumerate(plan.entries[entry].calls):
        known = kernels.get(call.kernel, {})
        line = found.get(call.kernel) or _empty_line(entry, call, known, dims)
        found[call.kernel] = replace(
            line,
            count=line.count + 1,
            nbytes=line.nbytes + (_cost(known.get("bytes"), call, dims) or call_bytes(call, dims)),
            operations=line.operations + _cost(known.get("operations"), call, dims),
            seconds=None if seconds is None else (line.seconds or 0.0) + seconds[at],
        )
    return [replace(line, origin=_of_all(line)) for line in found.values()]


def _of_all(line: KernelLine) -> str:
    """Where the calls came from: those of several layers are named `layers.*`."""
    return line.origin if line.count == 1 else _NUMBER.sub(".*", line.origin)


def _empty_line(entry: str, call: Call, known: Mapping[str, Any], dims: Dims) -> KernelLine:
    template = str(known.get("template", call.label))
    return KernelLine(entry, call.kernel, template, call.ops, call.origin, 0, 0, 0, None, dims)


def call_bytes(call: Call, dims: Dims) -> int:
    """Bytes of the tensors of a call, each once."""
    arguments = dict.fromkeys(call.arguments)
    return sum(tensor_bytes(a.dtype, evaluate_shape(a.shape, dims)) for a in arguments)


def _cost(formula: Any, call: Call, dims: Dims) -> int:
    """A formula over the dims of a kernel's body, 0 where there is none; L is the tokens of a
    sequence.
    """
    if formula is None:
        return 0
    context = {"L": min(CONTEXT, dims.get("M", 1) * CONTEXT)}
    names = {n for a in call.arguments for d in a.shape for n in dims_of(d)}
    # A kernel of the rows that need logits is written over T, as its twin over all tokens is.
    rows = {"T": dims["R"]} if "R" in names and "T" not in names else {}
    return evaluate_dim(_as_tuples(formula), {**dims, **rows, **context})


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(v) for v in value) if isinstance(value, list) else value


def _measured(artifact: Artifact, entry: str, dims: Dims) -> list[float]:
    """Seconds of each call of one step, the median of a few runs."""
    bound = _bound(artifact, entry, dims)
    return [_median_seconds(kernel, arguments) for kernel, arguments, _ in bound]


def _bound(artifact: Artifact, entry: str, dims: Dims) -> Bound:
    from ..runtime.executor import Executor
    from ..runtime.tensors import allocate

    if "M" not in artifact.plan.dims:
        specs = artifact.module.inputs
        inputs = {s.name: allocate(s.dtype, evaluate_shape(s.shape, dims)) for s in specs}
        return artifact.module.prepare(inputs, dims)
    executor = Executor(artifact.plan, artifact.library, artifact.weights, dims["M"])
    return executor.prepare(example_batch(artifact.plan, entry, dims))


def example_batch(plan: Plan, entry: str, dims: Dims) -> Any:
    """A step of one sequence, its tokens all zero."""
    from ..runtime.executor import Batch

    tokens = dims["T"]
    context = tokens if entry != "decode" else min(CONTEXT, dims["M"] * plan.block)
    places = range(context - tokens, context)
    return Batch(
        tokens=[0] * tokens,
        positions=list(places),
        query_start=[0, tokens],
        context_length=[context],
        block_table=[list(range(dims["M"]))],
        slots=list(places),
        logit_rows=[tokens - 1],
    )


def _median_seconds(kernel: Any, arguments: tuple[Any, ...]) -> float:
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        kernel(*arguments)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)
