"""Clients that leave, servers that end, engines that break."""

import asyncio
import http.client
import itertools
import json
import threading
import time
import urllib.request

import openai
from ferrule.runtime.bench.http import Target
from ferrule.runtime.bench.load import Load, measure
from ferrule.runtime.bench.prompts import Ask
from ferrule.runtime.server import streams
from scripted import ScriptRunner, serving, wait_for
from test_errors import post, slow

LONG = {"prompt": "a", "max_tokens": 1500}


def leave(running, body):
    """Send a request and close the connection once the engine works on it."""
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
    headers = {"content-type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    wait_for(lambda: running.service.unfinished)
    if body.get("stream"):
        connection.getresponse().read(100)
    connection.sock.close()
    connection.close()


def test_a_client_that_leaves_frees_its_blocks(tokenizer):
    runner = slow()
    with serving(tokenizer, {"fox": runner}) as running:
        (front,) = running.service.models.fronts.values()
        for body in (LONG, LONG | {"stream": True}, LONG | {"stream": True, "n": 3}):
            leave(running, body)
            wait_for(lambda: running.service.unfinished == 0)
            wait_for(lambda: not front.engine.has_work)
            front.engine.check()
            assert front.engine.stats().blocks_used == 0 and front.sequences == 0


def test_ending_in_order(tokenizer):
    runner = slow()
    with serving(tokenizer, {"fox": runner}) as running:
        got = []
        asked = {"prompt": "a", "max_tokens": 30}
        thread = threading.Thread(
            target=lambda: got.append(post(running, "/v1/completions", asked))
        )
        thread.start()
        wait_for(lambda: running.service.unfinished)
        running.loop.call_soon_threadsafe(running.server.drain)
        wait_for(lambda: running.service.draining)
        status, body = post(running, "/v1/completions", asked)
        assert (status, body["error"]["code"]) == (503, "draining")
        thread.join(60)
        assert got[0][0] == 200 and got[0][1]["usage"]["completion_tokens"] == 30
        running.thread.join(60)
        assert not running.thread.is_alive()


def test_an_engine_that_breaks_ends_its_requests_and_is_not_healthy(tokenizer):
    with serving(tokenizer, {"fox": slow(), "dog": ScriptRunner()}) as running:
        front = running.service.models.fronts["fox"]
        got = []
        thread = threading.Thread(target=lambda: got.append(post(running, "/v1/completions", LONG)))
        thread.start()
        wait_for(lambda: running.service.unfinished)
        front.engine.step = explode
        thread.join(60)
        assert got[0][0] == 500 and "the engine broke" in got[0][1]["error"]["message"]
        assert post(running, "/v1/completions", LONG)[0] == 503
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key="x") as client:
            assert client.completions.create(model="dog", prompt="a", max_tokens=1).choices
        connection = http.client.HTTPConnection("127.0.0.1", running.port)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 503
        connection.close()


def explode():
    raise RuntimeError("the engine broke")


def test_kernels_that_raise_end_the_requests_of_their_step_and_no_other(tokenizer):
    runner = slow()
    with serving(tokenizer, {"fox": runner}) as running:
        got = []

        def ask():
            got.append(post(running, "/v1/completions", LONG))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_for(lambda: running.service.unfinished == 3)
        step, runner.step = runner.step, broken
        for thread in threads:
            thread.join(60)
        runner.step = step
        assert [(s, b["error"]["code"]) for s, b in got] == [(500, "generation_failed")] * 3
        assert post(running, "/v1/completions", LONG | {"max_tokens": 3})[0] == 200
        (front,) = running.service.models.fronts.values()
        wait_for(lambda: not front.engine.has_work)
        front.engine.check()
        assert front.engine.stats().blocks_used == 0


def broken(_):
    raise RuntimeError("the kernel broke")


def test_a_clock_that_jumps_changes_no_answer_and_no_metric(tokenizer, monkeypatch):
    jumps = itertools.cycle([0.0, 4e9, 1.7e9, -5.0])
    with serving(tokenizer, {"fox": ScriptRunner()}) as running:
        monkeypatch.setattr(time, "time", lambda: next(jumps))
        for _ in range(4):
            status, body = post(running, "/v1/completions", {"prompt": "a", "max_tokens": 40})
            assert status == 200 and body["usage"]["completion_tokens"] == 40
        monkeypatch.undo()
        with urllib.request.urlopen(f"{running.url}/stats", timeout=60) as answer:
            live = json.loads(answer.read())["models"]["fox"]
    assert 0 <= live["time_to_first_token_ms"]["p99"] < 60_000
    assert 0 <= live["inter_token_latency_ms"]["p99"] < 60_000


def test_a_silent_stream_tells_that_it_lives(tokenizer, monkeypatch):
    monkeypatch.setattr(streams, "BEAT_SECONDS", 0.05)
    runner = ScriptRunner({"<reply>": "ab"})
    runner.delay = 0.2
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "temperature": 0}
    with serving(tokenizer, {"fox": runner}) as running:
        request = urllib.request.Request(
            f"{running.url}/v1/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            blocks = answer.read().decode().split("\n\n")
        assert blocks[-2:] == ["data: [DONE]", ""]
        assert 3 <= sum(block.startswith(":") for block in blocks) <= 20
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key="x") as client:
            chunks = client.chat.completions.create(model="fox", **body)
            assert "".join(c.choices[0].delta.content or "" for c in chunks) == "ab"
        load = Load(model="fox", endpoint="/v1/chat/completions")
        found = asyncio.run(measure(Target(running.url, {}), [Ask("hi", 4)], load))
        assert found["completed"] == 1 and found["total_output_tokens"] == 3
