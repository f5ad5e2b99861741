"""The graph of a model on its way through the pipeline."""

from __future__ import annotations

from ..codegen.backend import backend_of
from ..ir.graph import Graph
from ..passes.base import Ran
from .build import Options, imported_of, serve, target_of
from .console import Silent
from .errors import CompileError
from .models import Opened
from .pipeline import Recorder, laying_out, quantizing
from .report import Clock

CAPTURED = "captured"


def graph_at(opened: Opened, options: Options, phase: str) -> Graph:
    """The graph behind a phase of the pipeline, its name with hyphens; "captured" is what was
    imported. Raises CompileError, with all names, where there is no such phase.
    """
    if phase == CAPTURED:
        return imported_of(opened, options, Clock(), Silent())[0].graph
    graphs: dict[str, Graph] = {}

    def note(ran: Ran) -> None:
        graphs[ran.phase.replace(" ", "-")] = ran.after

    recorder = Recorder(watch=note)
    made = serve(opened, options, recorder, Clock(), Silent())
    if phase not in graphs:
        whole = recorder.run(made.graph, quantizing(options.recipe))
        recorder.run(whole, laying_out(backend_of(target_of(options))))
    if phase not in graphs:
        raise CompileError(f"no phase {phase!r}; known: {', '.join((CAPTURED, *graphs))}")
    return graphs[phase]
