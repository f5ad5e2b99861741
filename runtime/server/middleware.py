"""What every request passes: its log line, its key, its size."""

import asyncio
import hmac
import json
import logging
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError
from .settings import Settings
from .streams import ClientGone, finite

OPEN = frozenset(
    {"/", "/page.css", "/page.js", "/health", "/ready", "/version", "/metrics", "/openapi.json"}
)


class Gate:
    """Checks key and size before anything reads the body, and logs every request when it ends."""

    def __init__(self, app: ASGIApp, settings: Settings, log: logging.Logger) -> None:
        self._app, self._settings, self._log = app, settings, log
        self._keys = [key.encode() for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["state"] = {**scope.get("state", {}), "summary": {}, "key": None}
        if scope["method"] == "HEAD":
            scope, send = {**scope, "method": "GET", "asked": "HEAD"}, _headless(send)
        started, status = time.monotonic(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = _named(message, scope["state"]["summary"].get("request_id"))
            await send(message)

        try:
            status = await self._pass(scope, receive, sending) or status
        finally:
            self._write(scope, status, time.monotonic() - started)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> int | None:
        """Pass the request on; the status where the answer never began."""
        try:
            self._check(scope)
            await self._app(scope, self._counted(receive), send)
        except ApiError as error:
            await _answer(send, error, scope["path"])
        except ClientGone:
            return 499
        except Exception:  # the answer is on its way: what is left is to tell of it
            self._log.exception("fault")
        return None

    def _check(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        if self._keys and scope["path"] not in OPEN:
            given = headers.get(b"authorization", b"")
            key = given[7:].strip() if given[:7].lower() == b"bearer " else b""
            key = key or headers.get(b"x-api-key", b"")
            # Every key is compared, so that the time tells nothing.
            equal = [hmac.compare_digest(key, known) for known in self._keys]
            if True not in equal:
                message = "no valid API key: send it as `Authorization: Bearer KEY`"
                raise ApiError(401, message, code="invalid_api_key")
            scope["state"]["key"] = equal.index(True)
        packed = headers.get(b"content-encoding", b"").strip().lower()
        if packed not in (b"", b"identity"):
            message = f"content-encoding: given {packed.decode('latin-1')}, wanted a plain body"
            raise ApiError(415, message, code="unsupported_media_type")
        length = headers.get(b"content-length", b"0")
        if length.isdigit():
            self._check_size(int(length))

    def _check_size(self, size: int) -> None:
        most = self._settings.max_body_bytes
        if size > most:
            message = f"the request has {size} bytes or more, the limit is {most}"
            raise ApiError(413, message, code="request_too_large")

    def _counted(self, receive: Receive) -> Receive:
        size, more = 0, True

        async def receiving() -> Message:
            nonlocal size, more
            # After the body the next message is that the client has gone: that may take its time.
            message = await (self._in_time(receive) if more else receive())
            more = bool(message.get("more_body"))
            size += len(message.get("body", b""))
            self._check_size(size)
            return message

        return receiving

    async def _in_time(self, receive: Receive) -> Message:
        seconds = finite(self._settings.request_seconds)
        try:
            return await asyncio.wait_for(receive(), seconds)
        except TimeoutError:
            message = f"nothing of the body came for {seconds:g} seconds"
            raise ApiError(408, message, code="timeout") from None

    def _write(self, scope: Scope, status: int, seconds: float) -> None:
        client = scope.get("client")
        fields = {
            "method": scope.get("asked", scope["method"]),
            "path": scope["path"],
            "status": status,
            "seconds": round(seconds, 6),
            "client": client[0] if client else None,
            **scope["state"]["summary"],
        }
        self._log.info("request", extra={"fields": fields})


class JsonFormatter(logging.Formatter):
    """One JSON object a line; `fields` of a record are its own."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": round(record.created, 6),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _named(start: Message, request_id: str | None) -> Message:
    """The beginning of an answer with the id of its request, where that may stand in a header."""
    if request_id is None or not (request_id.isascii() and request_id.isprintable()):
        return start
    headers = [*start.get("headers", ()), (b"x-request-id", request_id.encode())]
    return {**start, "headers": headers}


def _headless(send: Send) -> Send:
    """Sends the head of an answer alone."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return sending


async def _answer(send: Send, error: ApiError, path: str) -> None:
    body = json.dumps(error.body_at(path)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    headers += [(k.encode(), v.encode()) for k, v in error.headers.items()]
    start = {"type": "http.response.start", "status": error.status, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": body})
