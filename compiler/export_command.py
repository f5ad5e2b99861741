"""The command `ferrule export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Source = Annotated[
    str,
    typer.Argument(
        metavar="DIR|MODEL|FILE.ir",
        help="An artifact, a Hugging Face directory or name, or IR text.",
        show_default=False,
    ),
]
Dialect = Annotated[
    str, typer.Option("--mlir", help="torch, linalg, stablehlo or tosa.", show_default=False)
]
Phase = Annotated[
    str,
    typer.Option(
        help="The graph behind this phase: captured, canonicalize, raise, merge, serving-form, "
        "caches, quantize or lay-out."
    ),
]
Dims = Annotated[str, typer.Option(help="Sizes of dims to fix, such as B=1,S=16.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="A file; else it is printed.")]
# Of a model, as for compile.
_QUANTIZE = typer.Option(help="For a model: int8, int4-g64, ..., seen from the phase quantize on.")
_CONTEXT = typer.Option(help="For a model: the longest sequence in tokens.")


def export(
    source: Source,
    mlir: Dialect,
    phase: Phase = "caches",
    dims: Dims = "",
    output: Output = None,
    dtype: Annotated[str, typer.Option(help="For a model: auto, float32, ...")] = "auto",
    quantize: Annotated[str | None, _QUANTIZE] = None,
    max_context: Annotated[int | None, _CONTEXT] = None,
) -> None:
    """Write a graph of the pipeline as MLIR (ferrule[mlir]); weights are arguments."""
    from .build import Options
    from .export import export_mlir, parse_dims

    options = Options(dtype=dtype, quantize=quantize, max_context=max_context, progress=False)
    text = export_mlir(source, mlir, phase, parse_dims(dims), options)
    if output is None:
        typer.echo(text)
    else:
        output.write_text(text, encoding="utf-8")


def add_commands(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(export)
