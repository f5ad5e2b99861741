"""What stands below requests: connections, heads, bodies in other forms."""

import gzip
import http.client
import json
import socket

import pytest
from ferrule.runtime.server.command import server_config
from ferrule.runtime.server.protocol import HEAD_BYTES
from test_errors import post

BODY = json.dumps({"prompt": "th", "max_tokens": 3, "temperature": 0}).encode()
WANTED = "e q"


class Wire:
    """A connection on which a test writes bytes."""

    def __init__(self, server):
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=60)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def ask(self, *pieces):
        for piece in pieces:
            self.socket.sendall(piece)
        return self.answer()

    def answer(self):
        answer = http.client.HTTPResponse(self.socket, method="POST")
        answer.begin()
        return answer.status, answer.read()


def head(*lines, path="/v1/completions"):
    given = (f"POST {path} HTTP/1.1", "host: x", "content-type: application/json", *lines)
    return "\r\n".join([*given, "", ""]).encode()


def text_of(answer):
    status, body = answer
    assert status == 200, body
    return json.loads(body)["choices"][0]["text"]


OFFER = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQ")


def test_a_client_that_offers_another_protocol_is_answered_in_this_one(server):
    length = f"content-length: {len(BODY)}"
    with Wire(server) as wire:
        assert text_of(wire.ask(head(*OFFER, length) + BODY)) == WANTED
        assert text_of(wire.ask(head(*OFFER, length), BODY[:9], BODY[9:])) == WANTED
        assert text_of(wire.ask(head(length) + BODY)) == WANTED
        chunks = b"9\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (BODY[:9], len(BODY) - 9, BODY[9:])
        offered = head(*OFFER, "transfer-encoding: chunked")
        assert text_of(wire.ask(offered + chunks[:20], chunks[20:])) == WANTED
        everything = head(*OFFER, length)
        split = [everything[:40], everything[40:90], everything[90:] + BODY]
        assert text_of(wire.ask(*split)) == WANTED
        status, body = wire.ask(head(*OFFER, "content-length: 0", path="/reset_prefix_cache"))
        assert status == 200, body
        assert wire.ask(head(*OFFER, path="/wake_up"))[0] == 200


def test_pipelined_requests_are_answered_in_their_order(server):
    whole = head(f"content-length: {len(BODY)}") + BODY
    with Wire(server) as wire:
        wire.socket.sendall(whole + head(path="/v1/nothing") + whole)
        received = wire.socket.makefile("rb")
        statuses = []
        for _ in range(3):
            statuses.append(int(received.readline().split()[1]))
            length = 0
            while (line := received.readline()) != b"\r\n":
                if line.startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            received.read(length)
        assert statuses == [200, 404, 200]


def test_a_head_has_an_end(server):
    with Wire(server) as wire:
        long = "x-long: " + "a" * (HEAD_BYTES // 2)
        assert text_of(wire.ask(head(f"content-length: {len(BODY)}", long) + BODY)) == WANTED
        wire.socket.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n")
        try:
            for _ in range(100):
                wire.socket.sendall(b"x-long: %s\r\n" % (b"a" * HEAD_BYTES))
        except OSError:
            return  # closed before it had all, as it should be
        status, body = wire.answer()
        assert (status, json.loads(body)["error"]["code"]) == (431, "headers_too_large")


def test_bodies_in_other_forms(server):
    packed = {"content-encoding": "gzip"}
    status, body = post(server, "/v1/completions", gzip.compress(BODY), packed)
    assert (status, body["error"]["code"]) == (415, "unsupported_media_type")
    assert "content-encoding: given gzip" in body["error"]["message"]
    plain = {"content-encoding": "identity"}
    assert post(server, "/v1/completions", BODY, plain)[0] == 200
    assert post(server, "/v1/completions", b"\xef\xbb\xbf" + BODY)[0] == 200
    status, body = post(server, "/v1/completions", '{"prompt": "\xe9"}'.encode("latin-1"))
    assert (status, body["error"]["code"]) == (400, "invalid_json")
    assert "can't decode byte 0xe9" in body["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_says_its_id(server, stream):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    headers = {"content-type": "application/json"}
    for given, wanted in (("mine", "mine"), (None, "cmpl-"), ("a\r\nset-cookie: b", None)):
        body = {"prompt": "th", "max_tokens": 1, "stream": stream, "request_id": given}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        answer.read()
        found = answer.headers.get("x-request-id")
        assert answer.status == 200 and answer.headers.get("set-cookie") is None
        assert found is wanted or found.startswith(wanted)
    connection.close()


def test_idle_connections_outlive_those_of_clients():
    assert server_config(lambda *_: None).timeout_keep_alive > 60
