"""Finds where a build departs: replays the pipeline in the reference interpreter on the same
tokens.

The graph after every pass is evaluated in float64, so that what differs is meaning and not
rounding. Where no pass departs, every kernel of a step is compared with the reference value of
its body on the kernel's own inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..codegen.backend import backend_of
from ..ir.graph import Graph
from ..passes.base import Ran
from .build import Kernels, Options, serve, target_of
from .check_kernels import kernel_departures
from .console import Silent
from .eager import eager_logits
from .models import Opened
from .parity import TOLERANCES, computed_dtype, random_prompts, relative_error, without
from .pipeline import Recorder
from .prepared import PreparedWeights
from .replay import Replay, first_departure
from .report import Clock

if TYPE_CHECKING:
    from ..runtime.artifact import Artifact

LENGTHS = (9, 4)
PASS_TOLERANCE = 1e-5  # of the largest logit, in float64: what passes fold is rounded to float32

QUANTIZED_TOLERANCE = 0.5  # weights and activations of few bits move logits by design


@dataclass(frozen=True)
class Bisection:
    """What departs first: the import, a pass and its node, a kernel, or nothing (`where` is empty).

    `error` is relative to the largest magnitude; `checked` names all that was compared.
    """

    checked: tuple[str, ...]
    where: str = ""
    node: str = ""
    error: float = 0.0

    @property
    def agrees(self) -> bool:
        """Whether nothing departs."""
        return not self.where

    def to_json(self) -> dict[str, Any]:
        """The finding by names."""
        return {"agrees": self.agrees, **asdict(self)}

    def __str__(self) -> str:
        if self.agrees:
            return f"nothing departs: {len(self.checked)} stages were compared"
        return f"{self.where} departs, by {self.error:.3g} of the largest value\n{self.node}"


@dataclass(frozen=True)
class Finding:
    """One comparison: what was compared, by how much it departs, how much it may, and the node to
    show.
    """

    where: str
    error: float
    tolerance: float
    node: str = ""


def bisect(opened: Opened, options: Options, artifact: Artifact) -> Bisection:
    """Replay a build and stop at the first departure."""
    checked: list[str] = []
    for found in _findings(opened, options, artifact):
        checked.append(found.where)
        if not found.error <= found.tolerance:
            return Bisection(tuple(checked), found.where, found.node, found.error)
    return Bisection(tuple(checked))


def _findings(opened: Opened, options: Options, artifact: Artifact) -> Iterator[Finding]:
    seen: list[Ran] = []
    recorder = Recorder(watch=seen.append)
    made = serve(opened, options, recorder, Clock(), Silent())
    captured = seen[0].before
    sequences = random_prompts(_vocabulary(captured), made.sizes.max_context, LENGTHS)
    sequences = without(made.sizes.absent, sequences)
    replay = Replay(sequences, made.weights, options.block)
    yield _import_finding(opened, captured, replay)
    for ran in seen:
        yield _pass_finding(ran, replay)
    *_, last = seen
    backend = backend_of(target_of(options))
    recipe = options.recipe
    kernels = Kernels.of(made.graph, backend, recorder, artifact.plan.limits, recipe=recipe)
    *packing, grouping = seen[seen.index(last) + 1 :]
    for ran in packing:
        yield _pass_finding(ran, replay, QUANTIZED_TOLERANCE if recipe else PASS_TOLERANCE)
    prepared = PreparedWeights(kernels.preparation, made.weights)
    yield _pass_finding(grouping, Replay(sequences, prepared, options.block))
    for where, error, tolerance in kernel_departures(artifact, kernels.bodies, sequences):
        yield Finding(where, error, tolerance)


def _import_finding(opened: Opened, captured: Graph, replay: Replay) -> Finding:
    with eager_logits(opened.model, opened.weights) as logits:
        wanted = [logits(ids, len(ids) - 1)[-1] for ids in replay.sequences]
    given = replay.logits(captured, wide=False)
    error = max(relative_error(w, g) for w, g in zip(wanted, given, strict=True))
    dtype = computed_dtype(captured, opened.dtype)
    return Finding("capture and import", error, TOLERANCES[dtype].relative)


def _pass_finding(ran: Ran, replay: Replay, tolerance: float = PASS_TOLERANCE) -> Finding:
    where = f"pass {ran.index} {ran.done.name!r}"
    if ran.after is ran.before:
        return Finding(where, 0.0, tolerance)
    error = relative_error(replay.logits(ran.before), replay.logits(ran.after))
    departs = not error <= tolerance
    node = first_departure(replay, ran.before, ran.after, tolerance) if departs else ""
    return Finding(where, error, tolerance, node)


def _vocabulary(graph: Graph) -> int:
    size = graph.output("logits").shape[-1]
    assert isinstance(size, int), graph.output("logits")
    return size
