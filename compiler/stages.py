"""The graphs of a model on their way through the pipeline, by the phases that they came out of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..codegen.backend import backend_of
from ..ir.graph import Graph
from ..passes.base import Ran
from .build import Options, serve, target_of
from .checkpoint import Weights
from .console import Silent
from .errors import CompileError
from .models import Opened
from .pipeline import Recorder, laying_out, quantizing
from .report import Clock

CAPTURED = "captured"


@dataclass(frozen=True, eq=False)
class Stages:
    """Graphs by phase, in order ("captured" is what was imported), and the model's weights."""

    graphs: Mapping[str, Graph]
    weights: Weights

    def at(self, phase: str) -> Graph:
        """The graph behind a phase; raises CompileError, with all names, where there is none."""
        if phase not in self.graphs:
            raise CompileError(f"no phase {phase!r}; known: {', '.join(self.graphs)}")
        return self.graphs[phase]


def stages_of(opened: Opened, options: Options) -> Stages:
    """Runs the pipeline up to the layouts of weights, and keeps the graph behind every phase."""
    graphs: dict[str, Graph] = {}

    def note(ran: Ran) -> None:
        graphs.setdefault(CAPTURED, ran.before)
        graphs[ran.phase.replace(" ", "-")] = ran.after

    recorder = Recorder(watch=note)
    made = serve(opened, options, recorder, Clock(), Silent())
    whole = recorder.run(made.graph, quantizing(options.recipe))
    recorder.run(whole, laying_out(backend_of(target_of(options))))
    return Stages(graphs, made.weights)
