"""Mixed traffic: every stream ends, refusals are deserved, nothing stays behind."""

import http.client
import json
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from ferrule.runtime.server.settings import Settings
from scripted import ScriptRunner, serving, wait_for
from test_errors import post

LONG = "x" * 900
SHARED = "shared prefix " * 20
KINDS = ("short", "long", "shared", "several", "leave", "bad")


def traffic(running, seed, until, found):
    """One client: requests of every kind, one after another."""
    generator = random.Random(seed)
    while time.monotonic() < until:
        kind = generator.choice(KINDS)
        try:
            found.append((kind, *ask(running, kind, generator)))
        except Exception as error:
            found.append((kind, repr(error), None))


def ask(running, kind, generator):
    """Status, and whether a good answer is whole."""
    body = {"max_tokens": generator.randint(1, 30), "stream": True}
    body["prompt"] = {"long": LONG, "shared": SHARED + str(generator.random())}.get(kind, "hi")
    body |= {"several": {"n": 4}, "bad": {"no_such_field": 1}, "leave": {"max_tokens": 900}}.get(
        kind, {}
    )
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
    headers = {"content-type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    answer = connection.getresponse()
    try:
        if kind == "leave":
            answer.read(200)
            return answer.status, None
        text = answer.read().decode()
        return answer.status, answer.status == 200 and is_whole(text, body.get("n", 1))
    finally:
        connection.close()


def is_whole(text, sequences):
    """Whether a stream has an end for each of its sequences, no error, and its last event."""
    *events, last = [block.removeprefix("data: ") for block in text.split("\n\n")[:-1]]
    bodies = [json.loads(event) for event in events]
    ends = [c for b in bodies for c in b.get("choices", ()) if c["finish_reason"]]
    return last == "[DONE]" and len(ends) == sequences and all("error" not in b for b in bodies)


@pytest.mark.slow
def test_mixed_traffic_of_many_clients(tokenizer):
    runner = ScriptRunner(blocks=160, max_batch=16, max_context=1024)
    with serving(tokenizer, {"fox": runner}, limit=200) as running:
        until, found = time.monotonic() + 6.0, []
        threads = [
            threading.Thread(target=traffic, args=(running, n, until, found)) for n in range(32)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        (front,) = running.service.models.fronts.values()
        wait_for(lambda: not front.engine.has_work and not front.requests)
        front.engine.check()
        assert front.engine.stats().blocks_used == 0 and front.sequences == 0
    assert {kind for kind, _, _ in found} == set(KINDS)
    for kind, status, whole in found:
        assert status == (400 if kind == "bad" else 200), (kind, status)
        assert whole or kind in ("bad", "leave"), kind


def test_more_than_the_cache_holds_is_served_in_turns(tokenizer):
    """Each of eight takes 8 blocks in the end, of 20 that there are: some have to give way."""
    runner = ScriptRunner(blocks=20, max_batch=8, max_context=256)
    body = {"prompt": "th", "max_tokens": 120, "temperature": 0, "ignore_eos": True}
    with serving(tokenizer, {"fox": runner}) as running:
        with ThreadPoolExecutor(8) as pool:
            each = [pool.submit(post, running, "/v1/completions", body) for _ in range(8)]
            answers = [done.result() for done in each]
        (front,) = running.service.models.fronts.values()
        wait_for(lambda: not front.engine.has_work)
        front.engine.check()
        stats = front.engine.stats()
        assert stats.preemptions >= 1 and stats.blocks_used == 0
    for status, answer in answers:
        assert status == 200 and answer["usage"]["completion_tokens"] == 120
        assert (
            answer["choices"][0]["text"]
            == ("the quick brown fox jumps over the lazy dog. " * 3)[2:122]
        )


@pytest.mark.slow
def test_a_client_that_never_reads_is_cut_off(tokenizer):
    settings = Settings(request_seconds=2.0)
    with serving(tokenizer, settings=settings) as running, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", running.port))
        body = {"prompt": "a", "max_tokens": 1900, "n": 8, "logprobs": 20, "stream": True}
        raw = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(raw)}\r\n"
        client.sendall(head.encode() + b"content-type: application/json\r\n\r\n" + raw)
        wait_for(lambda: running.service.unfinished)
        begun = time.monotonic()
        wait_for(lambda: not running.service.unfinished, 20)
        assert time.monotonic() - begun < 6.0
        (front,) = running.service.models.fronts.values()
        wait_for(lambda: not front.engine.has_work)
        front.engine.check()
