"""The command `ferrule tune`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from .tune import TuneReport


What = Annotated[
    str | None,
    typer.Argument(
        metavar="[DIR|MODEL]",
        help="An artifact, or a Hugging Face directory or name.",
        show_default=False,
    ),
]
Budget = Annotated[float, typer.Option(help="Seconds for all of it, compiling included.")]
Tuning = Annotated[Path | None, typer.Option(help="The file of records; the user's by default.")]
Imports = Annotated[
    list[Path] | None,
    typer.Option("--import", help="Take in the records of this file first; may be repeated."),
]
Export = Annotated[Path | None, typer.Option(help="Write all records to this file at the end.")]
# Of a model, as for compile: kernels are recognized by their text, which these decide.
_TARGET = typer.Option(help="For a model: cpu, cpu:x86-64-v3, cuda:sm_90, ...")
_DTYPE = typer.Option(help="For a model: auto, float32, bfloat16 or float16.")
_QUANTIZE = typer.Option(help="For a model: int8, int8-g64, int4, int4-g32, ...")
_CONTEXT = typer.Option(help="For a model: the longest sequence in tokens.")
_BATCH = typer.Option(help="For a model: the most sequences in one step.")
_CHUNK = typer.Option(help="For a model: the most tokens in one step.")
_DETERMINISTIC = typer.Option("--deterministic", help="For a model: as for compile.")
_BLOCK = typer.Option(help="For a model: tokens in a block of the KV cache.")


def tune(
    what: What = None,
    budget: Budget = 300.0,
    tuning: Tuning = None,
    imports: Imports = None,
    export: Export = None,
    target: Annotated[str, _TARGET] = "cpu",
    dtype: Annotated[str, _DTYPE] = "auto",
    quantize: Annotated[str | None, _QUANTIZE] = None,
    max_context: Annotated[int | None, _CONTEXT] = None,
    max_batch: Annotated[int, _BATCH] = 32,
    chunk: Annotated[int, _CHUNK] = 512,
    block: Annotated[int, _BLOCK] = 16,
    deterministic: Annotated[bool, _DETERMINISTIC] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
) -> None:
    """Measure kernels with other tiles and record which are faster here; an artifact is built anew
    with them, a model when it is next compiled.
    """
    from .hardware import records_path
    from .records import merge_records, read_records, write_records
    from .tuning import read_known

    if what is None and not imports and export is None:
        raise typer.BadParameter("nothing to do: wanted DIR or MODEL, --import or --export")
    records = records_path() if tuning is None else tuning
    for source in imports or ():
        taken = len(read_known(source))
        merge_records(records, [source])
        typer.echo(f"{source}: {taken} records into {records}", err=as_json)
    if what is not None:
        options = {
            "target": target,
            "dtype": dtype,
            "quantize": quantize,
            "max_context": max_context,
            "max_batch": max_batch,
            "chunk": chunk,
            "block": block,
            "deterministic": deterministic,
        }
        report = _tune(what, budget, records, options, progress=not quiet)
        _show(report, records, as_json=as_json)
    if export is not None:
        found = read_records(records)
        write_records(export, found)
        typer.echo(f"{export}: {len(found)} records of {records}", err=as_json)


def _tune(
    what: str, budget: float, records: Path, options: dict[str, object], *, progress: bool
) -> TuneReport:
    from .build import Options
    from .retune import is_artifact, tune_artifact, tune_model

    if is_artifact(what):
        return tune_artifact(Path(what), budget, records, show_progress=progress)
    given = Options(**options, progress=progress)  # type: ignore[arg-type]
    return tune_model(what, given, budget, records)


def _show(report: TuneReport, records: Path, *, as_json: bool) -> None:
    from .console import print_tuning

    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2))
    else:
        print_tuning(report, str(records))
    if report.interrupted:
        raise typer.Exit(130)


def add_commands(app: typer.Typer) -> None:
    """Hang the command on the command line."""
    app.command()(tune)
