"""Answers that end with their client: server-sent events, and work that is dropped when nobody
waits for it.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..errors import RequestError
from .errors import ApiError, failed, refused

T = TypeVar("T")
Events = AsyncGenerator[str, None]
Fault = Callable[[ApiError], str]
BEAT_SECONDS = 15.0
_written = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class ClientGone(Exception):
    """The client closed its connection before it had its answer."""


def event(body: object, name: str | None = None) -> str:
    """One server-sent event."""
    text = _written(body)
    return (f"event: {name}\n" if name else "") + f"data: {text}\n\n"


def done() -> str:
    """The event that ends a stream of the OpenAI API."""
    return "data: [DONE]\n\n"


async def until_gone(work: Coroutine[Any, Any, T], request: Request, seconds: float) -> T:
    """The result of `work`, which is cancelled when the client leaves or the time is over."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait(
            (task, watch), timeout=finite(seconds), return_when=asyncio.FIRST_COMPLETED
        )
        if task.done():
            return task.result()
        if watch.done():
            raise ClientGone
        raise _too_late(seconds)
    finally:
        await _cancel(task)
        await _cancel(watch)


class EventStream(Response):
    """Sends events as they come. Its generator is closed when the client leaves or time is over.

    A client that does not read stops the sending, and then the time limit ends the request.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: Events,
        seconds: float,
        close: Callable[[], None],
        fault: Fault,
        *,
        ends: bool,
    ) -> None:
        super().__init__()
        self._events, self._seconds, self._close = events, seconds, close
        self._fault, self._ends = fault, ends
        self._sent: float | None = None  # when something was sent; None before and after
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-cache"
        self.headers["x-accel-buffering"] = "no"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request (ASGI)."""
        sending = asyncio.ensure_future(self._send_all(send))
        watch = asyncio.ensure_future(_gone(receive))
        beat = asyncio.ensure_future(self._beat(send))
        try:
            # Time for the error event after the limit itself.
            await asyncio.wait(
                (sending, watch),
                timeout=finite(self._seconds + 1.0),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if sending.done():
                sending.result()
        finally:
            for task in (sending, watch, beat):
                await _cancel(task)
            await self._events.aclose()
            # A generator that never began has no `finally` to run.
            self._close()

    async def _send_all(self, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        clock = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(finite(self._seconds)):
                self._sent = clock()
                async for text in self._events:
                    await _send_text(send, text)
                    self._sent = clock()
        except TimeoutError:
            last = done() if self._ends else ""
            await _send_text(send, self._fault(_too_late(self._seconds)) + last)
        self._sent = None
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _beat(self, send: Send) -> None:
        """Send comments while nothing else is to be sent, in a long queue or a long call: proxies
        and clients take silence for death.
        """
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(BEAT_SECONDS / 4)
            if self._sent is not None and clock() - self._sent >= BEAT_SECONDS:
                self._sent = clock()
                await _send_text(send, ": the answer is on its way\n\n")


async def _send_text(send: Send, text: str) -> None:
    body = text.encode("utf-8", "replace")
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def guarded(events: Events, fault: Fault, *, ends: bool = True) -> Events:
    """The events; an error among them becomes an event of its own, and [DONE] ends them if it is to
    be so.
    """
    try:
        async for text in events:
            yield text
    except ApiError as error:
        yield fault(error)
    except RequestError as error:
        yield fault(refused(error))
    except Exception as error:
        yield fault(failed(error))
    finally:
        await events.aclose()
    if ends:
        yield done()


def finite(seconds: float) -> float | None:
    """A time limit as asyncio has it: None for one that never ends."""
    return seconds if seconds != float("inf") else None


def _too_late(seconds: float) -> ApiError:
    return ApiError(504, f"the request took more than {seconds:g} seconds", code="timeout")


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(task: "asyncio.Future[Any]") -> None:
    if task.done():
        if not task.cancelled():
            task.exception()  # taken, so that nobody warns of it
        return
    task.cancel()
    await _settled(task)


async def _settled(task: Awaitable[Any]) -> None:
    try:
        await task
    except (asyncio.CancelledError, Exception):
        return
