"""The commands of `ferrule bench`; the work is done in runtime/bench."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..runtime.artifact import Artifact
    from ..runtime.bench.datasets import Source
    from ..runtime.bench.load import Load, Ramp
    from ..runtime.bench.prompts import Ask

bench = typer.Typer(help="Measure a server or an artifact.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A compiled artifact.")]
Save = Annotated[
    Path | None,
    typer.Option("--output", "-o", "--output-json", help="Write the result here as JSON."),
]
Inputs = Annotated[int, typer.Option(help="Tokens of a prompt.")]
Outputs = Annotated[int, typer.Option(help="Tokens to generate for each.")]
Prompts = Annotated[int, typer.Option(help="Requests to send.")]
Ratio = Annotated[float, typer.Option(help="Lengths vary by this share to either side.")]
Seed = Annotated[int, typer.Option(help="Makes prompts and arrivals repeatable.")]
Vocabulary = Annotated[int, typer.Option(help="Random token ids are below this.")]


Url = Annotated[str | None, typer.Option(help="The server; else --host and --port say where.")]
Backend = Annotated[str, typer.Option(help="openai (completions) or openai-chat.")]
Endpoint = Annotated[str | None, typer.Option(help="Where to send requests; the backend's.")]
Dataset = Annotated[
    str | None,
    typer.Option(
        help="random, prefix_repetition, sharegpt, sonnet, burstgpt, spec_bench, hf (files of a"
        " data set) or custom; random, or custom where there is a path."
    ),
]
DatasetPath = Annotated[Path | None, typer.Option(help="The dataset's file; custom: JSONL.")]
Tokenizer = Annotated[Path | None, typer.Option(help="A folder whose tokenizer counts text.")]
PrefixLength = Annotated[int, typer.Option(help="Tokens that prompts share.")]
Prefixes = Annotated[int, typer.Option(help="Different beginnings of prompts.")]
OwnOutput = Annotated[int | None, typer.Option(help="Tokens to generate for each.")]
Category = Annotated[str | None, typer.Option(help="Questions of one kind alone.")]
Split = Annotated[str, typer.Option(help="Files of a folder whose names have this in them.")]
Rates = Annotated[
    str, typer.Option(help="Requests a second; inf sends all. Several, 1,2,4,inf, are a sweep.")
]
Burstiness = Annotated[float, typer.Option(help="1 is a Poisson process.")]
Strategy = Annotated[str | None, typer.Option(help="linear or exponential: the rate changes.")]
Rps = Annotated[float | None, typer.Option(help="Requests a second at this end of the ramp.")]
Concurrency = Annotated[int | None, typer.Option(help="The most at once.")]
Goodput = Annotated[
    list[str] | None, typer.Option(help="Limits in ms, such as ttft:200 tpot:50; may be repeated.")
]
More = Annotated[list[str] | None, typer.Argument(hidden=True)]
Percentiles = Annotated[str, typer.Option(help="Such as 50,90,99.")]
Metrics = Annotated[str, typer.Option(help="Of ttft, tpot, itl and e2el.")]
Warmups = Annotated[int, typer.Option(help="Requests before the measurement.")]
Extra = Annotated[str | None, typer.Option(help="More fields of every body, as JSON.")]
SaveResult = Annotated[bool, typer.Option("--save-result", help="Write the result to a file.")]
Key = Annotated[str | None, typer.Option(envvar="FERRULE_API_KEY")]
IgnoreEnd = Annotated[bool, typer.Option("--ignore-eos", help="Generate all tokens asked for.")]
ENDPOINTS = {
    "openai": "/v1/completions",
    "openai-chat": "/v1/chat/completions",
    "vllm": "/v1/completions",
}


@bench.command("serve")
def bench_serve(
    more: More = None,
    backend: Backend = "openai",
    base_url: Url = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    endpoint: Endpoint = None,
    model: Annotated[str | None, typer.Option(help="The model's name.")] = None,
    api_key: Key = None,
    num_prompts: Prompts = 1000,
    dataset_name: Dataset = None,
    dataset_path: DatasetPath = None,
    tokenizer: Tokenizer = None,
    random_input_len: Inputs = 1024,
    random_output_len: Outputs = 128,
    random_range_ratio: Ratio = 0.0,
    random_prefix_len: PrefixLength = 0,
    prefix_repetition_prefix_len: PrefixLength = 256,
    prefix_repetition_suffix_len: Inputs = 256,
    prefix_repetition_num_prefixes: Prefixes = 10,
    prefix_repetition_output_len: OwnOutput = 128,
    sharegpt_output_len: OwnOutput = None,
    sonnet_input_len: Inputs = 550,
    sonnet_output_len: OwnOutput = 150,
    sonnet_prefix_len: PrefixLength = 200,
    burstgpt_output_len: OwnOutput = None,
    spec_bench_output_len: OwnOutput = 256,
    spec_bench_category: Category = None,
    custom_output_len: OwnOutput = 256,
    hf_output_len: OwnOutput = None,
    hf_split: Split = "train",
    vocabulary: Vocabulary = 1000,
    request_rate: Rates = "inf",
    burstiness: Burstiness = 1.0,
    ramp_up_strategy: Strategy = None,
    ramp_up_start_rps: Rps = None,
    ramp_up_end_rps: Rps = None,
    max_concurrency: Concurrency = None,
    ignore_eos: IgnoreEnd = False,
    temperature: Annotated[float, typer.Option(help="Of every request.")] = 0.0,
    extra_body: Extra = None,
    goodput: Goodput = None,
    percentile_metrics: Metrics = "ttft,tpot,itl,e2el",
    metric_percentiles: Percentiles = "99",
    num_warmups: Warmups = 0,
    seed: Seed = 0,
    save_result: SaveResult = False,
    result_dir: Annotated[Path, typer.Option(help="Where --save-result writes.")] = Path(),
    result_filename: Annotated[str | None, typer.Option(help="And under which name.")] = None,
    output: Save = None,
) -> None:
    """Load a server and measure throughput and latencies as its clients see them."""
    _bench(SimpleNamespace(**locals()))


def _bench(given: Any) -> None:
    """Load a server with the options of the command, by their names."""
    rates = given.request_rate
    runs = [_run(given, _load_of(given, rate)) for rate in _rates(rates)]
    _save(given, runs[0] if len(runs) == 1 else {**_named(given, rates), "runs": runs})
    if len(runs) > 1:
        from ..runtime.bench.table import sweep_table

        typer.echo(sweep_table(runs, given.percentile_metrics.split(",")))
    if errors := [error for found in runs for error in found["errors"] if error]:
        typer.echo(f"error: {len(errors)} requests failed, the first one: {errors[0]}", err=True)
        raise typer.Exit(1)


def _rates(text: str) -> list[float]:
    try:
        rates = [float(rate) for rate in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--request-rate {text!r}: wanted numbers, or inf") from None
    if not all(rate > 0 for rate in rates):
        raise typer.BadParameter(f"--request-rate {text!r}: wanted numbers above 0")
    return rates


def _run(given: Any, load: Load) -> dict[str, Any]:
    """Measure one rate, and print what was found."""
    found = _named(given, load.rate if load.rate != float("inf") else "inf")
    found |= _measured(given, load)
    typer.echo(_table(found, load))
    return found


def _load_of(given: Any, rate: float) -> Load:
    from ..runtime.bench.load import METRICS, Load

    if given.backend not in ENDPOINTS:
        known = ", ".join(ENDPOINTS)
        raise typer.BadParameter(f"--backend {given.backend!r}: wanted one of {known}")
    metrics = tuple(given.percentile_metrics.split(","))
    if wrong := set(metrics) - set(METRICS):
        raise typer.BadParameter(f"--percentile-metrics {min(wrong)!r}: of {', '.join(METRICS)}")
    return Load(
        model=given.model,
        endpoint=given.endpoint or ENDPOINTS[given.backend],
        rate=rate,
        burstiness=given.burstiness,
        max_concurrency=given.max_concurrency,
        ignore_eos=given.ignore_eos,
        temperature=given.temperature,
        warmups=given.num_warmups,
        seed=given.seed,
        percentiles=tuple(float(p) for p in given.metric_percentiles.split(",")),
        metrics=metrics,
        goodput=_limits([*(given.goodput or ()), *(given.more or ())]),
        ramp=_ramp(given.ramp_up_strategy, given.ramp_up_start_rps, given.ramp_up_end_rps),
        extra=json.loads(given.extra_body or "{}"),
    )


def _ramp(strategy: str | None, begin: float | None, end: float | None) -> Ramp | None:
    from ..runtime.bench.load import Ramp

    if strategy is None and begin is None and end is None:
        return None
    if strategy not in ("linear", "exponential") or not begin or not end:
        raise typer.BadParameter(
            "--ramp-up-strategy is linear or exponential, and has both its rps"
        )
    return Ramp(strategy, begin, end)


def _source(given: Any) -> Source:
    """The dataset, with the options that have its name."""
    from ..runtime.bench.datasets import Source

    name = given.dataset_name or ("custom" if given.dataset_path else "random")
    lengths = {
        "random": (given.random_input_len, given.random_output_len, given.random_prefix_len),
        "prefix_repetition": (
            given.prefix_repetition_suffix_len,
            given.prefix_repetition_output_len,
            given.prefix_repetition_prefix_len,
        ),
        "sharegpt": (0, given.sharegpt_output_len, 0),
        "sonnet": (given.sonnet_input_len, given.sonnet_output_len, given.sonnet_prefix_len),
        "burstgpt": (0, given.burstgpt_output_len, 0),
        "spec_bench": (0, given.spec_bench_output_len, 0),
        "custom": (0, given.custom_output_len, 0),
        "hf": (0, given.hf_output_len, 0),
    }
    inputs, outputs, prefix = lengths.get(name, (0, None, 0))
    return Source(
        name=name,
        path=given.dataset_path,
        count=given.num_prompts,
        input=inputs,
        output=outputs,
        range_ratio=given.random_range_ratio,
        prefix=prefix,
        prefixes=given.prefix_repetition_num_prefixes,
        vocabulary=given.vocabulary,
        category=given.spec_bench_category,
        split=given.hf_split,
        tokenizer=given.tokenizer,
        seed=given.seed,
    )


def _measured(given: Any, load: Load) -> dict[str, Any]:
    from ..runtime.bench.http import Target
    from ..runtime.bench.load import measure

    headers = {"authorization": f"Bearer {given.api_key}"} if given.api_key else {}
    url = given.base_url or f"http://{given.host}:{given.port}"
    return asyncio.run(measure(Target(url, headers), _source(given).asks(), load))


def _named(given: Any, rate: float | str) -> dict[str, Any]:
    """What a result says of how it came about."""
    return {
        "date": time.strftime("%Y%m%d-%H%M%S"),
        "backend": given.backend,
        "model_id": given.model,
        "num_prompts": given.num_prompts,
        "request_rate": rate,
        "burstiness": given.burstiness,
        "max_concurrency": given.max_concurrency,
    }


def _save(given: Any, found: dict[str, Any]) -> None:
    """Write the result where it was asked for."""
    paths = [given.output] if given.output else []
    if given.save_result:
        model = str(given.model).replace("/", "-")
        own = f"{given.backend}-{given.request_rate}qps-{model}-{found['date']}.json"
        paths.append(given.result_dir / (given.result_filename or own))
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _table(found: dict[str, Any], load: Load) -> str:
    from ..runtime.bench.table import table

    return table(found, load.metrics)


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
    for text in " ".join(texts).replace(",", " ").split():
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
