"""The commands of `ferrule bench`; the work is done in runtime/bench."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..runtime.artifact import Artifact
    from ..runtime.bench.load import Load
    from ..runtime.bench.prompts import Ask

bench = typer.Typer(help="Measure a server or an artifact.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A compiled artifact.")]
Save = Annotated[Path | None, typer.Option("--output", "-o", help="Write the result here as JSON.")]
Inputs = Annotated[int, typer.Option(help="Tokens of a prompt.")]
Outputs = Annotated[int, typer.Option(help="Tokens to generate for each.")]
Prompts = Annotated[int, typer.Option(help="Requests to send.")]
Ratio = Annotated[float, typer.Option(help="Lengths vary by this share to either side.")]
Seed = Annotated[int, typer.Option(help="Makes prompts and arrivals repeatable.")]
Vocabulary = Annotated[int, typer.Option(help="Random token ids are below this.")]
LISTS = ("input_lens", "output_lens", "ttfts", "itls", "start_times", "generated_texts", "errors")


@bench.command("serve")
def bench_serve(
    base_url: Annotated[str, typer.Option(help="The server.")] = "http://127.0.0.1:8000",
    endpoint: Annotated[str, typer.Option(help="Where to send requests.")] = "/v1/completions",
    model: Annotated[str | None, typer.Option(help="The model's name.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="FERRULE_API_KEY")] = None,
    num_prompts: Prompts = 1000,
    dataset_path: Annotated[
        Path | None, typer.Option(help="JSONL with a prompt a line; random ones by default.")
    ] = None,
    random_input_len: Inputs = 1024,
    random_output_len: Outputs = 128,
    random_range_ratio: Ratio = 0.0,
    random_prefix_len: Annotated[int, typer.Option(help="Tokens that all prompts share.")] = 0,
    vocabulary: Vocabulary = 1000,
    request_rate: Annotated[float, typer.Option(help="Requests a second; inf sends all.")] = float(
        "inf"
    ),
    burstiness: Annotated[float, typer.Option(help="1 is a Poisson process.")] = 1.0,
    max_concurrency: Annotated[int | None, typer.Option(help="The most at once.")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos")] = False,
    goodput: Annotated[
        list[str] | None, typer.Option(help="A limit in ms, such as ttft:200; may be repeated.")
    ] = None,
    metric_percentiles: Annotated[str, typer.Option(help="Such as 50,90,99.")] = "99",
    num_warmups: Annotated[int, typer.Option(help="Requests before the measurement.")] = 0,
    seed: Seed = 0,
    output: Save = None,
) -> None:
    """Load a server and measure throughput and latencies as its clients see them."""
    from ..runtime.bench.load import Load

    sizes = (random_input_len, random_output_len, random_range_ratio, random_prefix_len)
    asks = _asks(dataset_path, num_prompts, sizes, vocabulary, seed)
    load = Load(
        model=model,
        endpoint=endpoint,
        rate=request_rate,
        burstiness=burstiness,
        max_concurrency=max_concurrency,
        ignore_eos=ignore_eos,
        warmups=num_warmups,
        seed=seed,
        percentiles=tuple(float(p) for p in metric_percentiles.split(",")),
        goodput=_limits(goodput or []),
    )
    _measure(base_url, api_key, asks, load, output)


def _asks(
    path: Path | None, count: int, sizes: tuple[int, int, float, int], vocabulary: int, seed: int
) -> list[Ask]:
    from ..runtime.bench.prompts import RandomPrompts, file_asks

    if path is not None:
        return file_asks(path, count, sizes[1])
    return RandomPrompts(count, *sizes, vocabulary, seed).asks()


def _measure(
    url: str, api_key: str | None, asks: list[Ask], load: Load, output: Path | None
) -> None:
    from ..runtime.bench.http import Target
    from ..runtime.bench.load import measure

    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    found = asyncio.run(measure(Target(url, headers), asks, load))
    _report({k: v for k, v in found.items() if k not in LISTS}, found, output)
    if found["failed"]:
        first = next(error for error in found["errors"] if error)
        typer.echo(f"error: {found['failed']} requests failed, the first one: {first}", err=True)
        raise typer.Exit(1)


@bench.command("latency")
def bench_latency(
    folder: Folder,
    input_len: Inputs = 32,
    output_len: Outputs = 128,
    batch_size: Annotated[int, typer.Option(help="Prompts at once.")] = 8,
    num_iters_warmup: Annotated[int, typer.Option(help="Batches before the measurement.")] = 10,
    num_iters: Annotated[int, typer.Option(help="Batches to measure.")] = 30,
    threads: Annotated[int | None, typer.Option(help="Cores to use; all by default.")] = None,
    output: Save = None,
) -> None:
    """Time one batch, from prompts to last tokens."""
    from ..runtime.artifact import load
    from ..runtime.bench.local import latency

    artifact = load(folder, threads=threads)
    asks = _random(artifact, batch_size, input_len, output_len, 0.0, 0)
    found = latency(artifact, asks, iterations=num_iters, warmups=num_iters_warmup)
    _report({k: v for k, v in found.items() if k != "latencies"}, found, output)


@bench.command("throughput")
def bench_throughput(
    folder: Folder,
    num_prompts: Prompts = 100,
    input_len: Inputs = 128,
    output_len: Outputs = 128,
    range_ratio: Ratio = 0.0,
    threads: Annotated[int | None, typer.Option(help="Cores to use; all by default.")] = None,
    seed: Seed = 0,
    output: Save = None,
) -> None:
    """Complete many prompts that are all there from the start."""
    from ..runtime.artifact import load
    from ..runtime.bench.local import throughput

    artifact = load(folder, threads=threads)
    found = throughput(
        artifact, _random(artifact, num_prompts, input_len, output_len, range_ratio, seed)
    )
    _report(found, found, output)


@bench.command("startup")
def bench_startup(
    folder: Folder,
    num_iters: Annotated[int, typer.Option(help="Processes of each kind.")] = 3,
    output: Save = None,
) -> None:
    """Time fresh processes from their start to a first token."""
    from ..runtime.bench.local import startup

    found = startup(folder, iterations=num_iters)
    _report(found, found, output)


def _random(
    artifact: Artifact, count: int, inputs: int, outputs: int, ratio: float, seed: int
) -> list[Ask]:
    from ..runtime.bench.local import vocabulary_of
    from ..runtime.bench.prompts import RandomPrompts

    vocabulary = vocabulary_of(artifact)
    return RandomPrompts(count, inputs, outputs, ratio, 0, vocabulary, seed).asks()


def _limits(texts: list[str]) -> dict[str, float]:
    limits = {}
    for text in texts:
        name, _, value = text.partition(":")
        if name not in ("ttft", "tpot", "e2el") or not value.replace(".", "", 1).isdigit():
            raise typer.BadParameter(f"{text!r}: wanted ttft, tpot or e2el, a colon and ms")
        limits[name] = float(value)
    return limits


def _report(shown: dict[str, Any], found: dict[str, Any], output: Path | None) -> None:
    """Print lines of name and number; write everything as JSON where asked."""
    for name, value in shown.items():
        text = f"{value:,.3f}" if isinstance(value, float) else str(value)
        typer.echo(f"{name:<36}{text}")
    if output is not None:
        output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
