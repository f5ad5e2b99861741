"""The command `ferrule zoo`, and the page that it writes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from .zoo import Found

Only = Annotated[str, typer.Option(help="Types, separated by commas; all by default.")]
Sample = Annotated[int | None, typer.Option(help="Try so many of them, drawn by the seed.")]
Records = Annotated[
    Path, typer.Option(help="What was found, a line of JSON a type; what is there is not tried.")
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Write the table here.")]
Limit = Annotated[float, typer.Option(help="The most seconds for a type.")]


def zoo(
    only: Only = "",
    sample: Sample = None,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0,
    records: Records = Path("zoo.jsonl"),
    output: Output = None,
    limit: Limit = 180.0,
    again: Annotated[bool, typer.Option("--again", help="Try what is recorded too.")] = False,
) -> None:
    """Compile a tiny model of every causal-LM type that transformers offers, and compare tokens and
    logits with eager.
    """
    from .zoo import chosen_types, read_found, run_zoo

    types = chosen_types([k for k in only.split(",") if k], sample, seed)
    if again and records.exists():
        kept = [found for found in read_found(records) if found.kind not in types]
        write_records(records, kept)
    found = run_zoo(types, records, limit, lambda one: typer.echo(line_of(one)))
    served = sum(one.served for one in found)
    typer.echo(f"{served} of {len(found)} types give eager's tokens")
    if output is not None:
        output.write_text(page(read_found(records)), encoding="utf-8")


def write_records(records: Path, found: Sequence[Found]) -> None:
    """Write records anew."""
    import json
    from dataclasses import asdict

    lines = [json.dumps(asdict(one)) + "\n" for one in found]
    records.write_text("".join(lines), encoding="utf-8")


def line_of(found: Found) -> str:
    """One type in a line for the terminal."""
    if found.refused:
        return f"{found.kind}: {found.refused}"
    return (
        f"{found.kind}: {found.tokens}/{found.wanted} tokens, error {found.error:.1e}, "
        f"{found.kernels / found.layers:.1f} kernels a layer, {found.seconds:.1f} s"
    )


def page(found: Sequence[Found]) -> str:
    """The table as a page of Markdown."""
    import torch
    import transformers

    from ..ir.target import Host
    from .zoo import zoo_types

    host = Host()
    rows = sorted(found, key=lambda one: one.kind)
    served = [one for one in rows if one.served]
    departed = [one for one in rows if not one.refused and not one.served]
    refused = [one for one in rows if one.refused]
    parts = [
        _HEAD.format(
            types=len(zoo_types()),
            tried=len(rows),
            served=len(served),
            transformers=transformers.__version__,
            torch=torch.__version__.partition("+")[0],
            processor=f"{host.model()}, code for {host.arch()}",
        ),
        _table(served),
    ]
    if departed:
        parts += ["\n## Types that give other tokens than eager\n", _table(departed)]
    if refused:
        parts += ["\n## Types that are not served\n", "| type | class | why |", "|---|---|---|"]
        parts += [f"| {one.kind} | {one.family} | {_cell(one.refused)} |" for one in refused]
    return "\n".join(parts) + "\n"


_HEAD = """# Models

`ferrule zoo -o docs/models.md` makes this page: tiny models of the causal-LM types of transformers
{transformers} (random float32 weights, every kind of the type's layers), compiled and compared with
eager PyTorch {torch}, which computes the whole sequence again for every token. Four prompts of 1 to
22 tokens run as one ragged batch, 32 greedy tokens each; a sequence is compared up to the first
token at which eager's two best logits are tied. Of {types} types {tried} were tried, and {served}
are served.

- tokens: those equal to eager's, of those compared
- error: the largest difference of a logit, over its row's largest
- kernels: calls of a decode step, for each layer (those before and after the layers among them)
- seconds: of one processor ({processor}), to compile the tiny model

| type | class | tokens | error | kernels a layer | seconds |
|---|---|---|---|---|---|"""


def served_types(text: str) -> list[str]:
    """The types that a page says are served."""
    served = text.split("\n## ", 1)[0]
    return re.findall(r"^\| (\S+) \| \w+ \| \d+/\d+ \|", served, re.MULTILINE)


def _table(found: Sequence[Found]) -> str:
    return "\n".join(
        f"| {one.kind} | {one.family} | {one.tokens}/{one.wanted} | {one.error:.1e} | "
        f"{one.kernels / one.layers:.1f} | {one.seconds:.1f} |"
        for one in found
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def add_commands(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command()(zoo)
