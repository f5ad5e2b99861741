"""`ferrule batch`: a file of requests in OpenAI's batch format, resumable after a kill.

A request is done exactly when its whole line stands in the output: lines are appended one at a time
and forced to disk, and a broken last line is cut off on the next start. The output is locked, so
that two processes cannot both do a request.
"""

import asyncio
import fcntl
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from starlette.types import ASGIApp, Message, Scope

from ..errors import RequestError
from .service import Service

ENDPOINTS = (
    *("/v1/chat/completions", "/v1/completions", "/v1/responses"),
    *("/v1/embeddings", "/v1/score", "/v1/rerank"),
)


@dataclass(frozen=True)
class Line:
    """One request of a batch."""

    custom_id: str
    url: str
    body: Mapping[str, Any]


@dataclass(frozen=True)
class BatchReport:
    """What a run did: `earlier` were done by runs before it."""

    total: int
    earlier: int
    completed: int
    failed: int


def read_lines(path: Path) -> list[Line]:
    """The requests of a file. Raises `RequestError` with the line where one cannot be read."""
    found: dict[str, Line] = {}
    with path.open(encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            if not text.strip():
                continue
            line = _line(text, f"{path}:{number}")
            if line.custom_id in found:
                raise RequestError(f"{path}:{number}: custom_id {line.custom_id!r} is there twice")
            found[line.custom_id] = line
    return list(found.values())


def _line(text: str, where: str) -> Line:
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise RequestError(f"{where}: not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise RequestError(f"{where}: wanted an object")
    custom_id, url, body = (fields.get(name) for name in ("custom_id", "url", "body"))
    if not isinstance(custom_id, str) or not isinstance(body, dict):
        raise RequestError(f"{where}: wanted custom_id, method, url and body")
    if fields.get("method", "POST") != "POST" or url not in ENDPOINTS:
        raise RequestError(f"{where}: wanted POST to one of {', '.join(ENDPOINTS)}, given {url!r}")
    if body.get("stream"):
        raise RequestError(f"{where}: a batch does not stream")
    return Line(custom_id, url, body)


async def run_batch(
    app: ASGIApp,
    service: Service,
    lines: Iterable[Line],
    output: Path,
    *,
    at_once: int,
    progress: Callable[[int], None] = lambda count: None,
) -> BatchReport:
    """Do every request that the output does not have, `at_once` at a time."""
    asked = list(lines)
    with _locked(output) as file:
        earlier = _done(file)
        left = iter([line for line in asked if line.custom_id not in earlier])
        counts = {True: 0, False: 0}

        async def work() -> None:
            for line in left:
                result = await _answer(app, line)
                _append(file, result)
                counts[result["response"]["status_code"] == 200] += 1
                progress(len(earlier) + sum(counts.values()))

        _start(service)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(at_once):
                    group.create_task(work())
        finally:
            for front in service.models.fronts.values():
                front.close()
    return BatchReport(len(asked), len(asked) - sum(counts.values()), counts[True], counts[False])


def _start(service: Service) -> None:
    for front in service.models.fronts.values():
        front.start()


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RequestError(f"{path}: another process is writing it") from None
        yield file


def _done(file: BinaryIO) -> set[str]:
    """The ids of whole lines; what follows the last of them is cut off."""
    file.seek(0)
    content = file.read()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        file.truncate(len(whole))
    try:
        return {json.loads(line)["custom_id"] for line in whole.splitlines() if line.strip()}
    except (ValueError, KeyError, TypeError):
        raise RequestError(f"{file.name}: holds lines that are no results of a batch") from None


def _append(file: BinaryIO, result: Mapping[str, Any]) -> None:
    file.write(json.dumps(result, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
    file.flush()
    os.fsync(file.fileno())


async def _answer(app: ASGIApp, line: Line) -> dict[str, Any]:
    status, body = await _post(app, line.url, json.dumps(line.body).encode())
    request_id = f"batch_req_{uuid.uuid4().hex}"
    return {
        "id": request_id,
        "custom_id": line.custom_id,
        "response": {"status_code": status, "request_id": request_id, "body": json.loads(body)},
        "error": None,
    }


async def _post(app: ASGIApp, path: str, body: bytes) -> tuple[int, bytes]:
    """A request to the application itself, without a connection."""
    sent: list[Message] = []
    rest: asyncio.Queue[Message] = asyncio.Queue()  # a client that never leaves
    rest.put_nowait({"type": "http.request", "body": body, "more_body": False})

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "client": None,
        "server": None,
    }
    await app(scope, rest.get, send)
    return sent[0]["status"], b"".join(m.get("body", b"") for m in sent[1:])
