"""HTTP/1.1 with uvicorn's parser in C, and with what a server of its own has to settle there."""

import json

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .errors import ApiError

HEAD_BYTES = 1 << 16
_SAYS_LENGTH = (b"content-length", b"transfer-encoding")


class HttpProtocol(HttpToolsProtocol):
    """Two things that the parser leaves to others. A client that offers another protocol beside
    its request, as those of Java's own library do with `Upgrade: h2c`, is answered in this one with
    its body read; and a head has an end, or the connection has.
    """

    _in_head = _is_muted = False
    _head = 0  # bytes of a head that has not ended

    def data_received(self, data: bytes) -> None:
        """Take what came (asyncio)."""
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
            else:
                self._decline(data[offer.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
            return
        self._head = self._head + len(data) if self._in_head else 0
        if self._head > HEAD_BYTES:
            self._refuse()

    def _decline(self, rest: bytes) -> None:
        """Read a request to its end whose parser took what is behind its head for the protocol that
        the client offered.
        """
        lines = [b"%s: %s\r\n" % (n, v) for n, v in self.headers if n in _SAYS_LENGTH]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._is_muted = True  # its head is known
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%s\r\n" % b"".join(lines))
        self._is_muted = False
        if rest:
            self.data_received(rest)

    def _refuse(self) -> None:
        self._in_head = False
        error = ApiError(431, f"a head of more than {HEAD_BYTES} bytes", code="headers_too_large")
        body = json.dumps(error.body).encode()
        head = (
            "HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def on_message_begin(self) -> None:
        """A head begins (httptools)."""
        if not self._is_muted:
            self._in_head = True
            super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A piece of the head (httptools)."""
        if not self._is_muted:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A piece of the head (httptools)."""
        if not self._is_muted:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head ends (httptools)."""
        if not self._is_muted:
            self._in_head = False
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body ends (httptools); that of an offer is still to be read."""
        if not self.parser.should_upgrade() or self._should_upgrade():
            super().on_message_complete()
