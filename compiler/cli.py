"""The command line. Every command imports what it needs when it runs, so that `ferrule --help`
answers at once.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import collect_env, export_command, serve, tune_command, zoo_command

if TYPE_CHECKING:
    from ..runtime.artifact import Artifact
    from ..runtime.sampling import SamplingParams

app = typer.Typer(
    name="ferrule",
    help="Binds a language model written in PyTorch to a machine: compile, run, look inside.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

serve.add_commands(app)
tune_command.add_commands(app)
zoo_command.add_commands(app)
export_command.add_commands(app)
app.command("collect-env")(collect_env.collect_env)

Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="A compiled artifact.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Threads = Annotated[int | None, typer.Option(help="Cores to use; all of them by default.")]
Memory = Annotated[str | None, typer.Option(help="Bytes for the KV cache, such as 512M or 4G.")]
MaxTokens = Annotated[int, typer.Option(help="The most tokens to generate.")]
Temperature = Annotated[float, typer.Option(help="0 picks the likeliest token every time.")]
TopP = Annotated[float, typer.Option(help="Keep the likeliest tokens that make up this share.")]
TopK = Annotated[int, typer.Option(help="Keep this many of the likeliest tokens; 0 keeps all.")]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable.")]

Quantized = Annotated[
    str | None,
    typer.Option(
        help="int8, int8-g64, int4, int4-g64, int4-g128, ..., with zero points int4-g64-asym, ...; "
        "or a recipe, .json or .toml."
    ),
]
Deterministic = Annotated[
    bool, typer.Option("--deterministic", help="Tokens that do not depend on the rest of a batch.")
]
Pooling = Annotated[
    str | None,
    typer.Option(help="A vector a text: last, mean, cls, classify (its head) or auto (declared)."),
]
Dump = Annotated[Path | None, typer.Option(help="Write the graph after every pass here.")]
StopAfter = Annotated[str | None, typer.Option(help="Stop after this pass (with --dump).")]


@app.command("compile")
def compile_command(
    model: Annotated[
        str, typer.Argument(help="A Hugging Face directory or name.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the artifact goes.")],
    target: Annotated[
        str, typer.Option(help="cpu (this machine), cpu:x86-64-v3, cpu:znver5, ...")
    ] = "cpu",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    quantize: Quantized = None,
    max_context: Annotated[int | None, typer.Option(help="The longest sequence in tokens.")] = None,
    max_batch: Annotated[int, typer.Option(help="The most sequences in one step.")] = 32,
    chunk: Annotated[int, typer.Option(help="The most tokens in one step.")] = 512,
    block: Annotated[int, typer.Option(help="Tokens in a block of the KV cache.")] = 16,
    deterministic: Deterministic = False,
    kv_dtype: Annotated[
        str, typer.Option("--kv-cache-dtype", help="auto (the model's), bf16, f16 or int8.")
    ] = "auto",
    pooling: Pooling = None,
    dump: Dump = None,
    stop_after: StopAfter = None,
    tuning: Annotated[
        Path | None, typer.Option(help="Tuning records; those of ferrule tune by default.")
    ] = None,
    parity: Annotated[bool, typer.Option(help="Compare with the eager model at the end.")] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is at the output.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
) -> None:
    """Compile a model into an artifact directory."""
    from .build import Options, StoppedError, compile_to
    from .console import print_build
    from .pooled import write_embedder
    from .recipes import recipe_of

    options = Options(
        target=target,
        dtype=dtype,
        quantize=recipe_of(quantize) if quantize else None,
        max_context=max_context,
        max_batch=max_batch,
        chunk=chunk,
        block=block,
        deterministic=deterministic,
        kv_dtype=kv_dtype,
        dump=dump,
        stop_after=stop_after,
        tuning=tuning,
        pooling=pooling,
        parity=parity,
        progress=not quiet,
    )
    try:
        make = write_embedder if pooling is not None else None
        done = compile_to(model, output, options, overwrite=overwrite, make=make)
    except StoppedError as stopped:
        typer.echo(str(stopped))
        return
    print_build(done.manifest, str(output))


@app.command()
def run(
    folder: Folder,
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads it from the input.")],
    max_tokens: MaxTokens = 128,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    seed: Seed = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text; may be given often.")
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on past the end token.")
    ] = False,
    threads: Threads = None,
    kv_memory: Memory = None,
) -> None:
    """Continue a prompt, printing as tokens come."""
    params = _sampling(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        stop=stop,
        ignore_eos=ignore_eos,
    )
    artifact = _load(folder, threads, kv_memory)
    text = sys.stdin.read() if prompt == "-" else prompt
    typer.echo(text, nl=False)
    _stream(artifact, text, params)


@app.command()
def chat(
    folder: Folder,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.95,
    top_k: TopK = 0,
    seed: Seed = None,
    threads: Threads = None,
    kv_memory: Memory = None,
) -> None:
    """Talk with a model through its chat template; an empty line or Ctrl-D ends."""
    params = _sampling(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed
    )
    artifact = _load(folder, threads, kv_memory)
    messages = [{"role": "system", "content": system}] if system else []
    while (asked := _ask()) is not None:
        messages.append({"role": "user", "content": asked})
        answer = _stream(artifact, artifact.chat_ids(messages), params)
        messages.append({"role": "assistant", "content": answer})


@app.command()
def plan(
    folder: Folder,
    memory: Annotated[str | None, typer.Option(help="A budget for everything, such as 8G.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the memory that an artifact takes, to the byte, without loading it."""
    from .plan_report import read_memory

    report = read_memory(folder, _bytes(memory))
    typer.echo(json.dumps(report.to_json(), indent=2) if as_json else str(report))


@app.command()
def explain(
    folder: Folder,
    entry: Annotated[
        str | None, typer.Option(help="decode, mixed or main; all by default.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens of a mixed step.")] = None,
    sequences: Annotated[int, typer.Option(help="Sequences of a step.")] = 1,
    context: Annotated[
        int | None, typer.Option(help="Tokens of a sequence, those of the step among them.")
    ] = None,
    measure: Annotated[bool, typer.Option(help="Run a step and time each kernel.")] = True,
    probe: Annotated[
        bool, typer.Option("--probe", help="Measure this machine anew, recorded or not.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="A GPU to hold a GPU's artifact against, such as h200.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with charts here.")] = None,
    as_json: AsJson = False,
) -> None:
    """List every kernel of a step: ops, model source, bytes, operations, the time the machine
    allows and the time taken.
    """
    from ..runtime.manifest import read_manifest
    from .console import print_choices, print_explanation
    from .explain import Load, explain_artifact, probe_machine
    from .explain_page import page

    if probe:
        probe_machine(folder)
    load = Load(tokens, sequences, context)
    found = explain_artifact(folder, entry=entry, measure=measure, load=load, device=device)
    if html is not None:
        html.write_text(page(found), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        print_explanation(found)
        print_choices(read_manifest(folder))


@app.command()
def opt(
    file: Annotated[Path | None, typer.Argument(help="IR text; the input by default.")] = None,
    passes: Annotated[str, typer.Option(help='Such as "canonicalize,merge-linears".')] = "",
    list_passes: Annotated[
        bool, typer.Option("--list", help="List the passes and their options.")
    ] = False,
    origins: Annotated[bool, typer.Option(help="Keep the places in the model's source.")] = True,
) -> None:
    """Run passes over IR text and print the result."""
    from .opt import pass_lines, run_text

    if list_passes:
        typer.echo("\n".join(pass_lines()))
        return
    text = file.read_text(encoding="utf-8") if file is not None else sys.stdin.read()
    typer.echo(run_text(text, passes, origins=origins), nl=False)


@app.command()
def verify(
    folder: Folder,
    model: Annotated[
        str | None, typer.Option(help="The model, where it is no longer where it was.")
    ] = None,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="Find the first pass and node that depart.")
    ] = False,
    against: Annotated[str, typer.Option(help="eager PyTorch, or mlir.")] = "eager",
    as_json: AsJson = False,
) -> None:
    """Compare an artifact with the eager model it was compiled from, or with MLIR's reading."""
    from .verify import bisect_artifact, verify_artifact

    if against not in ("eager", "mlir"):
        raise typer.BadParameter(f"--against is eager or mlir, not {against!r}")

    if bisect:
        found = bisect_artifact(folder, model)
        typer.echo(json.dumps(found.to_json(), indent=2) if as_json else str(found))
        raise typer.Exit(0 if found.agrees else 1)
    measure = verify_artifact
    if against == "mlir":
        from .second_opinion import verify_against_mlir

        measure = verify_against_mlir
    report, dtype, tolerance = measure(folder, model)
    typer.echo(json.dumps(report.to_json(), indent=2) if as_json else str(report))
    from .parity import check

    check(report, dtype, tolerance)


def _load(folder: Path, threads: int | None, kv_memory: str | None) -> Artifact:
    from ..runtime.artifact import load

    return load(folder, threads=threads, cache_bytes=_bytes(kv_memory))


def _sampling(**given: object) -> SamplingParams:
    from ..runtime.sampling import SamplingParams

    return SamplingParams(**{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]


def _stream(artifact: Artifact, prompt: str | list[int], params: SamplingParams) -> str:
    """Print a completion as it comes; gives its text."""
    parts = []
    for delta in artifact.stream(prompt, params):
        parts.append(delta.text)
        typer.echo(delta.text, nl=False)
        sys.stdout.flush()
    typer.echo()
    return "".join(parts)


def _ask() -> str | None:
    """A line from the user, or None at the end."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip() or None
    except EOFError:
        return None


def _bytes(text: str | None) -> int | None:
    """The bytes that a text such as 4G or 512MiB denotes."""
    if text is None:
        return None
    units = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
    number = text.strip().upper().removesuffix("B").removesuffix("I")
    unit = number[-1:] if number[-1:] in units else ""
    try:
        return int(float(number.removesuffix(unit)) * (1 << units[unit]))
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no size; wanted bytes, or a number with K, M, G or T"
        ) from None


_COMPILERS = ("torch", "transformers", "sympy", "networkx", "tvm")


def main() -> None:
    """Run the command line on sys.argv: errors are one message and status 1, wrong usage is
    status 2.
    """
    if os.environ.get("FERRULE_TRACEBACK") == "1":
        app()
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        typer.echo(f"error: {_message(error)}", err=True)
        sys.exit(1)


def _message(error: Exception) -> str:
    """One clear message: ours as they are, a stranger's with its kind and the way to see more."""
    if isinstance(error, ModuleNotFoundError) and error.name in _COMPILERS:
        return f"{error.name} is not installed: this command needs the compiler, ferrule[cpu]"
    ours = type(error).__module__.split(".")[0] == "ferrule"
    text = str(error).strip()
    if ours or isinstance(error, OSError):
        return text
    return f"{type(error).__name__}: {text} (FERRULE_TRACEBACK=1 shows where)"
