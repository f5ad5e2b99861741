"""Every refusal has a status, the OpenAI shape, and names the field at fault."""

import http.client
import json
import socket

import openai
import pytest
from ferrule.runtime.errors import RequestError
from ferrule.runtime.server.settings import Settings
from scripted import ScriptRunner, serving, wait_for

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


def post(server, path, body, headers=None):
    """Status and JSON of a raw request; `body` is bytes or an object."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", path, raw, {"content-type": "application/json", **(headers or {})})
    answer = connection.getresponse()
    found = answer.status, json.loads(answer.read())
    connection.close()
    return found


@pytest.mark.parametrize(
    ("extra", "param", "code"),
    [
        ({"tempature": 1}, "tempature", "unsupported_parameter"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"use_beam_search": True, "stream": True}, "stream", "unsupported_parameter"),
        ({"use_beam_search": True, "top_p": 0.5}, "top_p", "unsupported_parameter"),
        ({"length_penalty": 2.0}, "length_penalty", "unsupported_parameter"),
        ({"priority": 3}, "priority", "invalid_value"),
        ({"temperature": -1}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"seed": 1.5}, "seed", "invalid_value"),
        ({"stop": [""]}, "stop", "invalid_value"),
        ({"stop_token_ids": [9999]}, "stop_token_ids", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "king", "content": ""}]}, "messages[0].role", "invalid_value"),
        ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
        ({"tool_choice": "auto"}, "tool_choice", "invalid_value"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"prediction": {"type": "content"}}, "prediction", "unsupported_parameter"),
        (
            {"tools": [{"type": "function", "function": {}}]},
            "tools[0].function.name",
            "missing_required_parameter",
        ),
        ({"stream_options": {"x": 1}}, "stream_options.x", "unsupported_parameter"),
        ({"model": "cat"}, "model", "model_not_found"),
    ],
)
def test_fields_at_fault_are_named(server, extra, param, code):
    status, body = post(server, "/v1/chat/completions", CHAT | extra)
    error = body["error"]
    assert (error["param"], error["code"]) == (param, code), error
    assert status == (404 if code == "model_not_found" else 400)
    assert error["message"] and error["type"]


def test_null_is_absence_and_neutral_values_ask_for_nothing(server):
    extra = {"frequency_penalty": None, "suffix": None, "presence_penalty": 0, "logit_bias": {}}
    assert post(server, "/v1/chat/completions", CHAT | extra)[0] == 200


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"{", "invalid_json"),
        (b"[]", "invalid_value"),
        (b"", "missing_required_parameter"),
        (b"\xff", "invalid_json"),
        (b'{"prompt": "\\ud800"}', "invalid_value"),
        (b'{"prompt": "a", "temperature": NaN}', "invalid_value"),
        (b"[" * 100_000, "invalid_json"),
    ],
)
def test_bodies_that_are_no_requests(server, raw, code):
    status, body = post(server, "/v1/completions", raw)
    assert (status, body["error"]["code"]) == (400, code), body


def test_prompts_that_do_not_fit(server):
    long = {"prompt": "x" * 2048}
    status, body = post(server, "/v1/completions", long)
    assert (status, body["error"]["code"]) == (400, "context_length_exceeded")
    assert "this model's maximum context length is 2048 tokens" in body["error"]["message"]
    assert post(server, "/v1/completions", {"prompt": ""})[1]["error"]["param"] == "prompt"
    assert post(server, "/v1/completions", {"prompt": [300]})[1]["error"]["param"] == "prompt"
    assert post(server, "/v1/completions", {})[1]["error"]["code"] == "missing_required_parameter"


def test_unknown_places_and_methods(server):
    assert post(server, "/v1/nothing", {})[0] == 404
    status, body = post(server, "/health", {})
    assert (status, body["error"]["code"]) == (405, "method_not_allowed")


def test_a_fault_in_the_engine_ends_its_request_alone(server, client, script):
    server.runner.broken = 7
    try:
        with pytest.raises(openai.InternalServerError, match="no kernel for token 7"):
            client.completions.create(model="fox", prompt=[7], max_tokens=3)
        stream = client.completions.create(model="fox", prompt=[7], max_tokens=3, stream=True)
        with pytest.raises(openai.APIError, match="no kernel for token 7"):
            list(stream)
        assert client.completions.create(model="fox", prompt="t", max_tokens=3).choices[0].text
    finally:
        server.runner.broken = None


def test_keys(tokenizer):
    with serving(tokenizer, settings=Settings(api_keys=("secret", "other"))) as running:
        asked = {"prompt": "a", "max_tokens": 1}
        status, body = post(running, "/v1/completions", asked)
        assert (status, body["error"]["code"]) == (401, "invalid_api_key")
        wrong = {"authorization": "Bearer wrong"}
        assert post(running, "/v1/completions", asked, wrong)[0] == 401
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key="other") as client:
            assert client.completions.create(model="fox", prompt="a", max_tokens=1).choices


def test_sizes(tokenizer):
    with serving(tokenizer, settings=Settings(max_body_bytes=1000)) as running:
        status, body = post(running, "/v1/completions", {"prompt": "a" * 1000})
        assert (status, body["error"]["code"]) == (413, "request_too_large")

        def pieces():
            yield from [b'{"prompt": "' + b"a" * 600, b"a" * 600 + b'"}']

        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
        headers = {"content-type": "application/json"}
        connection.request("POST", "/v1/completions", pieces(), headers, encode_chunked=True)
        assert connection.getresponse().status == 413
        connection.close()


def test_a_body_that_does_not_come(tokenizer):
    with (
        serving(tokenizer, settings=Settings(request_seconds=0.3)) as running,
        socket.create_connection(("127.0.0.1", running.port), timeout=60) as client,
    ):
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n"
        client.sendall(head + b"content-type: application/json\r\n\r\n{")
        assert b" 408 " in client.recv(1000)


def test_prompts_are_queued_all_or_none(tokenizer):
    with serving(tokenizer, {"fox": slow()}) as running:
        front = running.service.models.fronts["fox"]
        submit = front.engine.submit

        def second_fails(prompt, params, request_id, **options):
            if request_id.endswith("-1"):
                raise RequestError("not this one")
            return submit(prompt, params, request_id, **options)

        front.engine.submit = second_fails
        for stream in (False, True):
            body = {"prompt": ["a", "b", "c"], "max_tokens": 900, "stream": stream}
            status, answer = post(running, "/v1/completions", body)
            assert (status, answer["error"]["message"]) == (400, "not this one")
            wait_for(lambda: not front.requests and not front.engine.has_work)


def test_a_full_queue_refuses_at_once(tokenizer):
    with serving(tokenizer, {"fox": slow()}, limit=3) as running:
        status, body = post(running, "/v1/completions", {"prompt": "a", "n": 4})
        assert (status, body["error"]["code"]) == (429, "queue_full")
        assert body["error"]["type"] == "overloaded_error"
        assert post(running, "/v1/completions", {"prompt": "a", "n": 3, "max_tokens": 1})[0] == 200


def slow():
    runner = ScriptRunner()
    runner.delay = 0.02
    return runner


def test_a_request_that_takes_too_long(tokenizer):
    with serving(tokenizer, {"fox": slow()}, settings=Settings(request_seconds=0.3)) as running:
        status, body = post(running, "/v1/completions", {"prompt": "a", "max_tokens": 500})
        assert (status, body["error"]["code"]) == (504, "timeout")
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key="x") as client:
            stream = client.completions.create(model="fox", prompt="a", max_tokens=500, stream=True)
            with pytest.raises(openai.APIError, match=r"more than 0\.3 seconds"):
                list(stream)
        wait_for(lambda: running.service.unfinished == 0)
