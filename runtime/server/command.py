"""`ferrule serve`: artifacts to a running server."""

import asyncio
import ctypes
import logging
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from ..artifact import Artifact, load
from ..chat import ChatTemplate
from ..costs import Machine
from ..cuda.executor import CudaExecutor
from ..engine import Engine
from ..errors import ArtifactError
from ..executor import Executor
from ..kernel_times import kernel_report
from ..options import DEFAULTS, EngineOptions
from .app import build_app
from .batch import BatchReport, read_lines, run_batch
from .embedding import EngineEmbedder, embedder_of
from .front import EngineFront
from .live import LiveWindow, Observers
from .metrics import ServerMetrics
from .middleware import JsonFormatter
from .models import Models, ServedModel
from .service import Service
from .settings import Settings
from .traces import Traces, otlp_tracer


@dataclass(frozen=True)
class Listen:
    """Where a server listens: an address, or the path of a Unix socket; with a key and its
    certificate by HTTPS.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    uds: str | None = None
    key_file: Path | None = None
    certificate_file: Path | None = None


@dataclass(frozen=True)
class Talk:
    """How models are talked to: a chat template in place of their own, and whether their own
    sampling values hold where a request has none.
    """

    template: Path | None = None
    own_sampling: bool = True


OWN_TALK = Talk()
_ARENA_MAX = -8  # M_ARENA_MAX of malloc.h
# An engine's thread keeps the interpreter for so long before the event loop has its turn: with
# Python's own 5 ms the tokens of fast models leave in bundles.
_SWITCH_SECONDS = 0.0005
# A server that closes an idle connection when its client is about to use it again loses a request:
# clients keep theirs for less, the common ones for 5 to 60 seconds.
_KEEP_ALIVE_SECONDS = 75
AHEAD = 2  # full batches of one request's texts that are in an engine at once
MachineOf = Callable[[Artifact], Machine | None]


def serve_directories(
    directories: Sequence[Path],
    *,
    names: Sequence[str] = (),
    settings: Settings,
    listen: Listen,
    options: EngineOptions = DEFAULTS,
    talk: Talk = OWN_TALK,
    machine_of: MachineOf | None = None,
    traces: str | None = None,
    threads: int | None = None,
    cache_bytes: int | None = None,
) -> None:
    """Serve artifacts until a signal asks for the end; spans go to the OTLP endpoint `traces`."""
    share_arenas()
    start_logs()
    tracer, provider = otlp_tracer(traces) if traces else (None, None)
    begun = time.perf_counter()
    artifacts = [load(d, threads=threads, cache_bytes=cache_bytes) for d in directories]
    service = artifact_service(
        name_artifacts(artifacts, names), settings, options, talk, machine_of, tracer
    )
    for model in service.models:  # those of one server start together
        model.startup_seconds = time.perf_counter() - begun
    try:
        run(service, listen)
    finally:
        if provider is not None:
            provider.shutdown()


def name_artifacts(artifacts: Sequence[Artifact], names: Sequence[str]) -> dict[str, Artifact]:
    """Artifacts by the given names, or by those of their directories."""
    if names and len(names) != len(artifacts):
        raise ArtifactError(f"{len(names)} names for {len(artifacts)} artifacts")
    named = dict(zip(names or [a.path.name for a in artifacts], artifacts, strict=True))
    if len(named) != len(artifacts):
        raise ArtifactError("two artifacts of one name: name them with --served-model-name")
    return named


def artifact_service(
    artifacts: dict[str, Artifact],
    settings: Settings,
    options: EngineOptions = DEFAULTS,
    talk: Talk = OWN_TALK,
    machine_of: MachineOf | None = None,
    tracer: Any = None,
) -> Service:
    """The service of named artifacts, each with an engine of these options; `machine_of` knows the
    rates of this machine for an artifact's target, or None. With a `tracer` each request has a
    span.
    """
    longest = max(1, *(a.plan_report().max_context for a in artifacts.values()))
    metrics = ServerMetrics(longest)
    machine_of = machine_of or (lambda artifact: None)
    served = [
        _served(name, a, settings, metrics, options, machine_of(a), tracer)
        for name, a in artifacts.items()
    ]
    for model, artifact in zip(served, artifacts.values(), strict=True):
        _set_talk(model, artifact, talk)
        model.fingerprint = f"fp_{str(artifact.manifest['digest'])[:12]}"
    return Service(Models(served), settings, metrics)


def _set_talk(model: ServedModel, artifact: Artifact, talk: Talk) -> None:
    if talk.template is not None:
        try:
            source = talk.template.read_text(encoding="utf-8")
        except OSError as error:
            raise ArtifactError(f"the chat template cannot be read: {error}") from error
        model.tokenizer.template = ChatTemplate(source, model.tokenizer.special_tokens)
    elif artifact.text is not None:
        _ = artifact.text.template  # one that cannot be read is no server's
    if talk.own_sampling:
        model.sampling = artifact.sampling


def _served(
    name: str,
    artifact: Artifact,
    settings: Settings,
    metrics: ServerMetrics,
    options: EngineOptions,
    machine: Machine | None,
    tracer: Any,
) -> ServedModel:
    plan = asdict(artifact.plan_report())
    if "decode" not in artifact.plan.entries:
        embedder = embedder_of(artifact)
        return ServedModel(
            name, artifact.text, embedder.longest, embedder.vocabulary, embedder=embedder, plan=plan
        )
    engine = artifact.new_engine(options)
    live = LiveWindow()
    observers = [metrics.of(name), *([Traces(tracer, name)] if tracer else ())]
    front = EngineFront(
        engine,
        Observers(*observers, live),
        limit=settings.max_waiting + engine.max_batch,
    )
    pooling = engine.pooling
    return ServedModel(
        name,
        artifact.text,
        engine.max_context,
        pooling.vocabulary if pooling else engine.vocabulary,
        front,
        EngineEmbedder(front, pooling, AHEAD * engine.max_batch) if pooling else None,
        live=live,
        plan=plan,
        config=engine.config(),
        kernels=lambda: _kernels(artifact, engine, machine),
        bounded=engine.bounded,
    )


def _kernels(artifact: Artifact, engine: Engine, machine: Machine | None) -> dict[str, Any] | None:
    """The step that was timed last; the next one will be, too."""
    runner = engine.runner
    if not isinstance(runner, Executor | CudaExecutor):
        return None
    runner.samples = True
    sample = runner.sample
    return sample and kernel_report(artifact.plan, artifact.manifest, sample, machine)


def share_arenas() -> None:
    """Let threads share the memory that they free. By default glibc keeps it apart for each of
    eight a core, and a server grows with every thread that once had a long text in hand.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_ARENA_MAX, 2)


def start_logs() -> None:
    """JSON lines on standard error for this server and for uvicorn."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name in ("ferrule.server", "uvicorn"):
        log = logging.getLogger(name)
        log.handlers, log.propagate = [handler], False
        log.setLevel(logging.INFO)


def batch_directories(
    directories: Sequence[Path],
    file: Path,
    output: Path,
    *,
    threads: int | None = None,
    cache_bytes: int | None = None,
    progress: Callable[[int], None],
) -> BatchReport:
    """Do the requests of a file with artifacts; the first one serves where none is named."""
    lines = read_lines(file)
    artifacts = [load(d, threads=threads, cache_bytes=cache_bytes) for d in directories]
    settings = Settings(request_seconds=float("inf"))
    service = artifact_service(name_artifacts(artifacts, ()), settings)
    at_once = 2 * max(
        (f.limit - settings.max_waiting for f in service.models.fronts.values()), default=1
    )
    app = build_app(service, version("ferrule"))
    return asyncio.run(run_batch(app, service, lines, output, at_once=at_once, progress=progress))


class Server(uvicorn.Server):
    """Ends in order: the first signal stops new requests and lets those that run end, as far as
    `drain_seconds` allow; the second one ends at once.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self._drain: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve to the end."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came."""
        if self.service.draining:
            self.should_exit = self.force_exit = True
            return
        self.service.draining = True
        assert self._loop is not None, "signals are caught while serving only"
        self._loop.call_soon_threadsafe(self.drain)

    def drain(self) -> None:
        """Refuse new requests, and end the server when the last one has ended."""
        self.service.draining = True
        self._drain = asyncio.ensure_future(self._end_in_order())

    async def _end_in_order(self) -> None:
        loop = asyncio.get_running_loop()
        latest = loop.time() + self.service.settings.drain_seconds
        while self.service.unfinished and loop.time() < latest:
            await asyncio.sleep(0.02)
        for front in self.service.models.fronts.values():
            front.abort_all()
        self.should_exit = True


def server_config(app: ASGIApp, **where: Any) -> uvicorn.Config:
    """How an application is served; `where` are uvicorn's names for an address and keys."""
    http: Any = "auto"
    if find_spec("httptools") is not None:
        from .protocol import HttpProtocol as http
    return uvicorn.Config(
        app,
        **where,
        http=http,
        log_config=None,
        access_log=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        # What is still open after the drain is a client that does not read.
        timeout_graceful_shutdown=2,
    )


def run(service: Service, listen: Listen) -> None:
    """Serve until a signal asks for the end."""
    config = server_config(
        build_app(service, version("ferrule")),
        host=listen.host,
        port=listen.port,
        uds=listen.uds,
        ssl_keyfile=listen.key_file,
        ssl_certfile=listen.certificate_file,
    )
    sys.setswitchinterval(_SWITCH_SECONDS)
    server = Server(config, service)
    names = [model.name for model in service.models]
    fields = {"models": names, "host": listen.host, "port": listen.port, "uds": listen.uds}
    logging.getLogger("ferrule.server").info("serving", extra={"fields": fields})
    server.run()
