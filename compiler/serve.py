"""The commands that serve and measure what was built; the work is done in runtime/."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .measure import bench

Folders = Annotated[
    list[Path], typer.Argument(metavar="DIR...", help="Compiled artifacts.", show_default=False)
]


def serve(
    folders: Folders,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0 takes any that is free.")] = 8000,
    uds: Annotated[str | None, typer.Option(help="Listen on this Unix socket instead.")] = None,
    served_model_name: Annotated[
        list[str] | None, typer.Option(help="A name for each artifact, in order.")
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(envvar="FERRULE_API_KEY", help="A key that opens the API; may be repeated."),
    ] = None,
    max_waiting: Annotated[
        int, typer.Option(help="Requests that may wait; more are refused with 429.")
    ] = 256,
    max_body: Annotated[int, typer.Option(help="The most bytes in a request.")] = 8 << 20,
    request_timeout: Annotated[float, typer.Option(help="The most seconds for a request.")] = 600.0,
    drain_timeout: Annotated[
        float, typer.Option(help="Seconds that requests have to end after SIGTERM.")
    ] = 30.0,
    threads: Annotated[int | None, typer.Option(help="Cores to use; all by default.")] = None,
    kv_memory: Annotated[
        str | None, typer.Option(help="Bytes for each KV cache, such as 512M.")
    ] = None,
) -> None:
    """Serve artifacts over the OpenAI API, with metrics and a page to try them on."""
    from ..runtime.server.command import Listen, serve_directories
    from ..runtime.server.settings import Settings
    from .cli import _bytes

    settings = Settings(
        api_keys=tuple(api_key or ()),
        max_waiting=max_waiting,
        max_body_bytes=max_body,
        request_seconds=request_timeout,
        drain_seconds=drain_timeout,
    )
    serve_directories(
        folders,
        names=served_model_name or (),
        settings=settings,
        listen=Listen(host, port, uds),
        threads=threads,
        cache_bytes=_bytes(kv_memory),
    )


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
    app.command()(serve)
    app.command()(batch)
    app.add_typer(bench, name="bench")
