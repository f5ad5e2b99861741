"""A small HTTP/1.1 client on asyncio for measuring: JSON in, events or JSON out.

It measures a server, so it does as little as it can: one connection a request, no retries.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


class HttpError(Exception):
    """An answer that is no success."""


@dataclass(frozen=True)
class Target:
    """A server's base URL and the headers that it wants."""

    url: str
    headers: Mapping[str, str]

    @asynccontextmanager
    async def post(self, path: str, body: object) -> AsyncIterator["Answer"]:
        """Send JSON; leaving the block closes the connection."""
        raw = json.dumps(body).encode()
        async with self._connection() as (reader, writer):
            writer.write(self._head("POST", path, len(raw)) + raw)
            await writer.drain()
            yield await _read_head(reader)

    async def get(self, path: str) -> Any:
        """The JSON of a resource."""
        async with self._connection() as (reader, writer):
            writer.write(self._head("GET", path, 0))
            await writer.drain()
            return await (await _read_head(reader)).json()

    @asynccontextmanager
    async def _connection(
        self,
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        parts = urlsplit(self.url)
        context = ssl.create_default_context() if parts.scheme == "https" else None
        port = parts.port or (443 if context else 80)
        reader, writer = await asyncio.open_connection(
            parts.hostname, port, ssl=context, limit=1 << 20
        )
        try:
            yield reader, writer
        finally:
            writer.close()

    def _head(self, method: str, path: str, size: int) -> bytes:
        parts = urlsplit(self.url)
        headers = {
            "host": parts.netloc,
            "connection": "close",
            "content-type": "application/json",
            "content-length": str(size),
            **self.headers,
        }
        lines = [f"{method} {parts.path.rstrip('/')}{path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


@dataclass(frozen=True, eq=False)
class Answer:
    """An answer whose head is read."""

    status: int
    headers: Mapping[str, str]
    reader: asyncio.StreamReader

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        if self.headers.get("transfer-encoding") != "chunked":
            yield await self.reader.read(-1)
            return
        while size := int(await self.reader.readline() or b"0", 16):
            yield await self.reader.readexactly(size)
            await self.reader.readexactly(2)

    async def json(self) -> Any:
        """The whole body; raises `HttpError` where it is no success."""
        body = b"".join([piece async for piece in self.pieces()])
        if self.status != 200:
            raise HttpError(f"status {self.status}: {body.decode(errors='replace')[:500]}")
        return json.loads(body)

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The objects of server-sent events, to `[DONE]`; raises for an error among them."""
        if self.status != 200:
            await self.json()
        held = b""
        async for piece in self.pieces():
            *whole, held = (held + piece).split(b"\n\n")
            for block in whole:
                if block.startswith(b":"):
                    continue  # a comment, which says that the server is there
                data = block.split(b"data: ", 1)[-1]
                if data == b"[DONE]":
                    return
                body = json.loads(data)
                if "error" in body:
                    raise HttpError(body["error"]["message"])
                yield body
        raise HttpError("the stream ended before [DONE]")


async def _read_head(reader: asyncio.StreamReader) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
    return Answer(int(head[0].split()[1]), headers, reader)
