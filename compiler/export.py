"""`ferrule export`: a graph of the pipeline, at any phase before kernels, for other tools."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..ir.graph import Graph
from ..ir.text import parse_graph
from ..runtime.artifact import load
from ..runtime.manifest import MANIFEST
from .build import Options
from .errors import CompileError
from .mlir.dialects import text_of
from .mlir.program import program_of
from .models import open_model
from .stages import graph_at
from .verify import options_of, source_of


def export_mlir(
    source: str, dialect: str, phase: str, dims: Mapping[str, int], options: Options
) -> str:
    """The graph of a source as MLIR text.

    `source` is IR text (a file ending in .ir), an artifact, which is captured anew from its
    model with the options that it was built with, or a model. Dims that `dims` does not fix
    stay dynamic. Raises CompileError where the graph has no form in the dialect.
    """
    return text_of(program_of(_graph(source, phase, options), dims), dialect)


def _graph(source: str, phase: str, options: Options) -> Graph:
    path = Path(source)
    if path.suffix == ".ir":
        return parse_graph(path.read_text(encoding="utf-8"))
    if (path / MANIFEST).is_file():
        artifact = load(path)
        return graph_at(source_of(artifact, None), options_of(artifact.manifest), phase)
    return graph_at(open_model(source, options.dtype), options, phase)


def parse_dims(text: str) -> dict[str, int]:
    """Sizes by the names of dims, from text such as "B=1,S=16"."""
    sizes: dict[str, int] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, number = part.partition("=")
        if not number.isdigit() or int(number) < 1:
            raise CompileError(f"dims are given as in S=16,B=1, not {part!r}")
        sizes[name.strip()] = int(number)
    return sizes
