"""Endpoints for operators, and the log."""

import http.client
import io
import json
import logging
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from ferrule.runtime.server.middleware import JsonFormatter
from ferrule.runtime.server.settings import Settings
from scripted import ScriptRunner, serving, wait_for
from test_errors import post


def get(server, path):
    with urllib.request.urlopen(f"{server.url}{path}", timeout=60) as answer:
        return answer.status, answer.read(), answer.headers["content-type"]


def test_states(server):
    assert get(server, "/health")[0] == get(server, "/ready")[0] == 200
    assert json.loads(get(server, "/version")[1]) == {"version": "test"}
    assert json.loads(get(server, "/plan?model=dog")[1]) == {"total_bytes": 1}
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(server, "/plan?model=cat")


def test_live_counts(server):
    post(server, "/v1/completions", {"prompt": "a", "max_tokens": 5})
    live = json.loads(get(server, "/stats")[1])["models"]["fox"]
    assert (live["running"], live["waiting"], live["kv_blocks_used"]) == (0, 0, 0)
    assert live["kv_blocks_free"] + live["kv_blocks_cached"] == 512
    assert live["tokens_per_second"] > 0 and live["time_to_first_token_ms"]["p50"] > 0
    assert live["inter_token_latency_ms"]["p99"] >= live["inter_token_latency_ms"]["p50"]


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")],
)
def test_the_page_is_served(server, path, kind):
    status, body, found = get(server, path)
    assert status == 200 and body and found.startswith(kind)


def test_the_page_loads_nothing_from_elsewhere(server):
    for path in ("/", "/page.js", "/page.css"):
        text = get(server, path)[1].decode()
        assert "http://" not in text and "https://" not in text and "//cdn" not in text


def test_every_request_is_one_line_of_json(server):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    log = logging.getLogger("ferrule.server")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        post(server, "/v1/completions", {"prompt": "ab", "max_tokens": 5, "request_id": "mine"})
        post(server, "/v1/completions", {"prompt": "ab", "x": 5})
        wait_for(lambda: '"status": 400' in stream.getvalue())
    finally:
        log.removeHandler(handler)
    # Lines are written after the answer: those of other tests may come late.
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    good, bad = [line for line in lines if line["path"] == "/v1/completions"][-2:]
    assert good["request_id"] == "mine" and good["status"] == 200 and good["model"] == "fox"
    assert (good["prompt_tokens"], good["completion_tokens"]) == (2, 5)
    assert good["finish_reason"] == "length" and good["seconds"] > 0
    assert (bad["status"], bad["path"]) == (400, "/v1/completions")


def test_the_document_of_the_api_names_every_endpoint(server):
    paths = json.loads(get(server, "/openapi.json")[1])["paths"]
    wanted = {"/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/embeddings"}
    wanted |= {"/v1/models", "/tokenize", "/detokenize", "/health", "/ready", "/metrics"}
    assert wanted | {"/version", "/plan"} <= set(paths)


def test_everything_is_accounted_for_or_both_sides_are_told(server):
    assert get(server, "/ping")[0] == get(server, "/check")[0] == 200
    assert json.loads(get(server, "/load")[1]) == {"server_load": 0}
    engine = server.service.models["dog"].front.engine
    (lost,) = engine.pool.allocate(1)
    with pytest.raises(urllib.error.HTTPError, match="500") as raised:
        get(server, "/check")
    assert "expected 512" in json.loads(raised.value.read())["error"]["message"]
    engine.pool.release([lost])
    assert get(server, "/check")[0] == 200


def test_prefixes_are_forgotten_when_asked(server):
    body = {"prompt": "a long prompt of two blocks and more", "max_tokens": 2}

    def cached():
        usage = post(server, "/v1/completions", body)[1]["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"]

    cached()
    assert cached() == 32
    request = urllib.request.Request(f"{server.url}/reset_prefix_cache?model=fox", method="POST")
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200
    assert cached() == 0


def test_pages_of_other_origins_may_use_the_api_where_the_operator_says_so(tokenizer, server):
    def asked(running):
        headers = {
            "origin": "http://page.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type",
        }
        request = urllib.request.Request(
            f"{running.url}/v1/completions", headers=headers, method="OPTIONS"
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return dict(answer.headers)

    settings = Settings(api_keys=("k",), origins=("http://page.example",))
    with serving(tokenizer, settings=settings) as running:
        found = asked(running)
        assert found["access-control-allow-origin"] == "http://page.example"
        assert "authorization" in found["access-control-allow-headers"].lower()
        body = {"prompt": "a", "max_tokens": 1}
        assert post(running, "/v1/completions", body)[0] == 401
    with pytest.raises(urllib.error.HTTPError, match="405"):
        asked(server)


def test_facts_of_a_server(server):
    status, body = get(server, "/server_info")[:2]
    found = json.loads(body)
    assert status == 200 and found["version"] == "test" and found["settings"]["api_keys"] == 0
    assert found["models"]["fox"]["block_size"] == "16"
    status, body = get(server, "/tokenizer_info?model=dog")[:2]
    found = json.loads(body)
    assert found["vocab_size"] == 258 and found["special_tokens"]["eos_token"] == "</s>"
    assert found["chat_template"].startswith("{% for m in messages %}")
    assert (found["bos_token"], found["eos_token"]) == ("<s>", "</s>")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(server, "/tokenizer_info?model=cat")


def test_a_server_that_sleeps_takes_no_requests(tokenizer):
    runner = Sleeper()
    body = {"prompt": "th", "max_tokens": 4, "temperature": 0}
    with serving(tokenizer, {"fox": runner}) as running:
        runner.delay = 0.05
        with ThreadPoolExecutor() as pool:
            first = pool.submit(post, running, "/v1/completions", body)
            wait_for(lambda: running.service.unfinished)
            status, error = asked(running, "POST", "/sleep")
            assert status == 409 and "requests_running" in error
            assert first.result()[0] == 200
        assert asked(running, "GET", "/is_sleeping") == (200, '{"is_sleeping":false}')
        assert asked(running, "POST", "/sleep?level=2")[0] == 400
        assert asked(running, "POST", "/sleep")[0] == 200 and runner.released == 1
        assert asked(running, "GET", "/is_sleeping") == (200, '{"is_sleeping":true}')
        assert asked(running, "GET", "/ready")[0] == 503
        assert asked(running, "GET", "/health")[0] == 200
        asleep = 'sleep_state{engine="0",model_name="fox",sleep_state="asleep"} 1.0'
        assert asleep in asked(running, "GET", "/metrics")[1]
        status, error = post(running, "/v1/completions", body)
        assert (status, error["error"]["code"]) == (503, "asleep")
        assert asked(running, "POST", "/wake_up")[0] == 200
        assert post(running, "/v1/completions", body)[0] == 200


def test_who_cannot_sleep_says_so_and_goes_on(server):
    status, error = asked(server, "POST", "/sleep")
    assert status == 400 and "cannot be given back" in error
    assert asked(server, "GET", "/ready")[0] == 200


def asked(running, method, path):
    """Status and text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
    connection.request(method, path)
    answer = connection.getresponse()
    found = answer.status, answer.read().decode()
    connection.close()
    return found


class Sleeper(ScriptRunner):
    """Counts how often its caches were let go."""

    released = 0

    def release_caches(self):
        self.released += 1
        self.cache[...] = -1
