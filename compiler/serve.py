"""The commands that serve and measure what was built; the work is done in runtime/."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .help_topics import TopicalHelp
from .measure import bench

if TYPE_CHECKING:
    from ..runtime.options import EngineOptions
    from ..runtime.server.command import Listen
    from ..runtime.server.settings import Settings

LISTEN, ENGINE, LIMITS = "Listening", "Engine", "Limits"


def _option(*names: str, panel: str, say: str, **rest: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, help=say, **rest)


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take a file's values as the defaults of this command's options."""
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8")
        given = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{path}: {error}") from None
    known = {
        flag.lstrip("-"): option.name
        for option in context.command.params
        for flag in (*option.opts, *option.secondary_opts)
    }
    named = {name.replace("_", "-"): value for name, value in given.items()}
    if unknown := sorted(set(named) - set(known)):
        raise typer.BadParameter(f"{path}: no option {unknown[0]!r}; known: {', '.join(known)}")
    context.default_map = {known[name]: value for name, value in named.items()}
    return path


Folders = Annotated[
    list[Path], typer.Argument(metavar="DIR...", help="Compiled artifacts.", show_default=False)
]
Config = Annotated[
    Path | None,
    typer.Option(
        help="Options by their names, TOML or JSON; those given here go first.",
        callback=_read_config,
        is_eager=True,
    ),
]
Host = Annotated[str, _option(panel=LISTEN, say="The address to listen on.")]
Port = Annotated[int, _option(panel=LISTEN, say="The port; 0 takes any that is free.")]
Socket = Annotated[str | None, _option(panel=LISTEN, say="Listen on this Unix socket instead.")]
KeyFile = Annotated[Path | None, _option(panel=LISTEN, say="The key for HTTPS, PEM.")]
CertFile = Annotated[Path | None, _option(panel=LISTEN, say="The certificate for HTTPS, PEM.")]
Names = Annotated[
    list[str] | None, _option(panel=LISTEN, say="A name for each artifact, in order.")
]
Keys = Annotated[
    list[str] | None,
    _option(
        panel=LISTEN, say="A key that opens the API; may be repeated.", envvar="FERRULE_API_KEY"
    ),
]
Origins = Annotated[
    list[str] | None,
    _option(panel=LISTEN, say='Pages that may use the API from a browser; "*" is all of them.'),
]
Template = Annotated[
    Path | None, _option(panel=LISTEN, say="A chat template in place of the artifacts' own.")
]
TrustTemplates = Annotated[
    bool,
    _option(
        "--trust-request-chat-template", panel=LISTEN, say="Requests may bring a chat_template."
    ),
]
Defaults = Annotated[
    str,
    _option(
        panel=LISTEN,
        say="Sampling where a request does not say: auto takes the model's generation_config.json,"
        " none takes 1.0 for everything.",
    ),
]
TracesTo = Annotated[
    str | None,
    _option(
        panel=LISTEN,
        say="Send OpenTelemetry spans here, such as http://HOST:4318/v1/traces (ferrule[otel]).",
    ),
]
Waiting = Annotated[int, _option(panel=LIMITS, say="Requests that may wait; more get 429.")]
Body = Annotated[int, _option(panel=LIMITS, say="The most bytes in a request.")]
RequestTime = Annotated[float, _option(panel=LIMITS, say="The most seconds for a request.")]
DrainTime = Annotated[
    float, _option(panel=LIMITS, say="Seconds that requests have to end after SIGTERM.")
]
KeptResponses = Annotated[
    int,
    _option(panel=LIMITS, say="Responses that stay to be continued by their ids; 0 keeps none."),
]
ModelLength = Annotated[
    int | None, _option(panel=LIMITS, say="The most tokens of a sequence; the artifact's limit.")
]
Sequences = Annotated[
    int | None, _option(panel=ENGINE, say="The most sequences in a step; the artifact's limit.")
]
StepTokens = Annotated[
    int | None, _option(panel=ENGINE, say="The most tokens in a step; the artifact's limit.")
]
Pace = Annotated[
    float,
    _option(
        panel=ENGINE,
        say="A step that reads prompts takes at most so many times as long as its decodes alone;"
        " 0 reads prompts as fast as it can.",
    ),
]
PolicyName = Annotated[
    str,
    _option(panel=ENGINE, say="Who goes first: fcfs, priority, fair (by client) or shortest."),
]
Weights = Annotated[
    list[str] | None,
    _option(panel=ENGINE, say="CLIENT=SHARE under the policy fair, 1 by default; may be repeated."),
]
Caching = Annotated[
    bool,
    _option(
        "--enable-prefix-caching/--no-enable-prefix-caching",
        panel=ENGINE,
        say="Take what prompts have in common from the cache.",
    ),
]
SwapMemory = Annotated[
    str | None,
    _option(
        panel=ENGINE,
        say="Bytes for the blocks of preempted sequences, such as 2G; a quarter of the cache.",
    ),
]
SwapFolder = Annotated[
    Path | None, _option(panel=ENGINE, say="Keep those blocks in files here, not in memory.")
]
Threads = Annotated[int | None, _option(panel=ENGINE, say="Cores to use; all by default.")]
CacheMemory = Annotated[
    str | None,
    _option(
        "--kv-memory",
        "--kv-cache-memory-bytes",
        panel=ENGINE,
        say="Bytes for each KV cache, such as 512M.",
    ),
]

Thoughts = Annotated[
    str,
    _option(
        panel=LISTEN,
        say="auto tells a model's thoughts from its answer, by the tags that it writes; none leaves"
        " them in the text.",
    ),
]

Calls = Annotated[
    str,
    _option(
        panel=LISTEN,
        say="auto reads tool calls in the forms of all families; none leaves them in the text.",
    ),
]
# What other servers have to be told, and what is so here in any case.
AutoChoice = Annotated[bool, typer.Option("--enable-auto-tool-choice", hidden=True)]
Chunked = Annotated[bool, typer.Option("--enable-chunked-prefill", hidden=True)]
Seed = Annotated[
    int | None,
    _option(panel=ENGINE, say="Requests without a seed get theirs from this one, one by one."),
]


def serve(
    folders: Folders,
    config: Config = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    uds: Socket = None,
    ssl_keyfile: KeyFile = None,
    ssl_certfile: CertFile = None,
    served_model_name: Names = None,
    api_key: Keys = None,
    allowed_origin: Origins = None,
    chat_template: Template = None,
    trust_request_chat_template: TrustTemplates = False,
    reasoning_parser: Thoughts = "auto",
    tool_call_parser: Calls = "auto",
    enable_auto_tool_choice: AutoChoice = True,
    generation_config: Defaults = "auto",
    otlp_traces_endpoint: TracesTo = None,
    max_waiting: Waiting = 256,
    max_body: Body = 8 << 20,
    request_timeout: RequestTime = 600.0,
    drain_timeout: DrainTime = 30.0,
    kept_responses: KeptResponses = 1024,
    max_model_len: ModelLength = None,
    max_num_seqs: Sequences = None,
    max_num_batched_tokens: StepTokens = None,
    pace: Pace = 2.0,
    scheduling_policy: PolicyName = "fcfs",
    client_weight: Weights = None,
    enable_prefix_caching: Caching = True,
    enable_chunked_prefill: Chunked = True,
    seed: Seed = None,
    swap_memory: SwapMemory = None,
    swap_directory: SwapFolder = None,
    threads: Threads = None,
    kv_memory: CacheMemory = None,
) -> None:
    """Serve artifacts over the OpenAI API, with metrics and a page to try them on. Parts of this
    help: --help=listgroup, --help=Engine, --help=kv-memory.
    """
    _serve(SimpleNamespace(**locals()))


def _serve(given: Any) -> None:
    """Serve with the options of the command, by their names."""
    from ..runtime.server.command import Talk, serve_directories
    from .cli import _bytes
    from .explain import known_machine

    serve_directories(
        given.folders,
        names=given.served_model_name or (),
        settings=_settings(given),
        listen=_listen(given.host, given.port, given.uds, given.ssl_keyfile, given.ssl_certfile),
        options=_engine_options(
            policy=given.scheduling_policy,
            weights=_weights(given.client_weight or ()),
            prefix_caching=given.enable_prefix_caching,
            swap_bytes=_bytes(given.swap_memory),
            swap_directory=given.swap_directory,
            max_batch=given.max_num_seqs,
            max_context=given.max_model_len,
            token_budget=given.max_num_batched_tokens,
            pace=given.pace or None,
            seed=given.seed,
        ),
        talk=Talk(given.chat_template, _one_of("--generation-config", given.generation_config)),
        machine_of=lambda artifact: known_machine(artifact.manifest),
        traces=given.otlp_traces_endpoint,
        threads=given.threads,
        cache_bytes=_bytes(given.kv_memory),
    )


def _settings(given: Any) -> Settings:
    from ..runtime.server.settings import Settings

    return Settings(
        api_keys=tuple(given.api_key or ()),
        max_waiting=given.max_waiting,
        max_body_bytes=given.max_body,
        request_seconds=given.request_timeout,
        drain_seconds=given.drain_timeout,
        origins=tuple(given.allowed_origin or ()),
        thoughts=_one_of("--reasoning-parser", given.reasoning_parser),
        calls=_one_of("--tool-call-parser", given.tool_call_parser),
        own_templates=given.trust_request_chat_template,
        kept_responses=given.kept_responses,
    )


def _one_of(option: str, text: str) -> bool:
    """Whether an option is auto, not none."""
    if text not in ("auto", "none"):
        raise typer.BadParameter(
            f"{option} {text!r}: wanted auto, which knows all of them, or none"
        )
    return text == "auto"


def _listen(
    host: str, port: int, uds: str | None, key: Path | None, certificate: Path | None
) -> Listen:
    from ..runtime.server.command import Listen

    if (key is None) != (certificate is None):
        raise typer.BadParameter("--ssl-keyfile and --ssl-certfile go together")
    return Listen(host, port, uds, key, certificate)


def _engine_options(**given: Any) -> EngineOptions:
    from ..runtime.options import EngineOptions

    try:
        return EngineOptions(**given)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _weights(texts: list[str] | tuple[()]) -> dict[str, float]:
    found = {}
    for text in texts:
        client, _, share = text.rpartition("=")
        try:
            found[client] = float(share)
        except ValueError:
            raise typer.BadParameter(f"{text!r}: wanted CLIENT=SHARE") from None
    return found


def batch(
    file: Annotated[Path, typer.Argument(help="Requests in OpenAI's batch format, JSONL.")],
    folders: Folders,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where results are appended.")],
    threads: Annotated[int | None, typer.Option(help="Cores to use; all by default.")] = None,
    kv_memory: Annotated[
        str | None, typer.Option(help="Bytes for each KV cache, such as 512M.")
    ] = None,
) -> None:
    """Do a file of requests; started again after a kill, do those that are left."""
    from ..runtime.server.command import batch_directories
    from .cli import _bytes

    def progress(count: int) -> None:
        typer.echo(f"\r{count} done", err=True, nl=False)

    done = batch_directories(
        folders,
        file,
        output,
        threads=threads,
        cache_bytes=_bytes(kv_memory),
        progress=progress,
    )
    typer.echo(err=True)
    typer.echo(
        f"{done.total} requests: {done.earlier} done before, {done.completed} completed,"
        f" {done.failed} failed; results in {output}"
    )
    if done.failed:
        raise typer.Exit(1)


def add_commands(app: typer.Typer) -> None:
    """Hang the commands of this file on the command line."""
    app.command(cls=TopicalHelp)(serve)
    app.command()(batch)
    app.add_typer(bench, name="bench")
