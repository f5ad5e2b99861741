"""Constrained output over HTTP: formats, forced calls, bad grammars. Every sampled text fits."""

import json
import re

import openai
import pytest
from test_errors import post

pytest.importorskip("llguidance")
ASK = [{"role": "user", "content": "hi"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
        "ok": {"type": "boolean"},
    },
    "required": ["n", "ok"],
    "additionalProperties": False,
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Bern", "Rome"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("weather", "time")
]


@pytest.fixture(autouse=True)
def unsure(server):
    """A model that has no preference, so that only the grammar decides."""
    server.runner.sure = 0.0
    yield
    server.runner.sure = 40.0


def chat(client, **rest):
    return client.chat.completions.create(
        model="fox", messages=ASK, max_tokens=900, seed=3, **rest
    ).choices[0]


def test_a_schema(client):
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    found = json.loads(chat(client, response_format=wanted).message.content)
    assert set(found) == {"n", "ok"} and 0 <= found["n"] <= 99 and isinstance(found["ok"], bool)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "time"}}])
def test_forced_calls(client, choice):
    found = chat(client, tools=TOOLS, tool_choice=choice)
    (call,) = found.message.tool_calls
    names = ("weather", "time") if choice == "required" else ("time",)
    assert call.function.name in names and found.finish_reason == "tool_calls"
    assert json.loads(call.function.arguments)["city"] in ("Bern", "Rome")


def test_structured_outputs_by_vllms_names(client):
    for given, pattern in (
        ({"regex": "[a-c]{4}"}, "[a-c]{4}"),
        ({"choice": ["xy", "zw"]}, "xy|zw"),
    ):
        done = client.completions.create(
            model="fox", prompt="a", max_tokens=50, extra_body={"structured_outputs": given}
        )
        assert re.fullmatch(pattern, done.choices[0].text)


def test_responses_take_a_format(client):
    wanted = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}
    done = client.responses.create(model="fox", input="hi", text=wanted, max_output_tokens=900)
    assert set(json.loads(done.output_text)) == {"n", "ok"}


@pytest.mark.parametrize(
    "given", [{"regex": "("}, {"json": {"type": 5}}, {"grammar": "start: ("}, {}, {"x": 1}]
)
def test_a_bad_grammar_fails_its_own_request(client, given):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="fox", prompt="a", extra_body={"structured_outputs": given})
    assert "structured_outputs" in caught.value.message
    assert client.completions.create(model="fox", prompt="a", max_tokens=1).choices


def test_rules_that_leave_no_token_are_the_clients_fault(client):
    body = {"response_format": {"type": "json_object"}, "allowed_token_ids": [0]}
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="fox", prompt="a", extra_body=body)
    assert caught.value.code == "generation_failed"
    stream = client.completions.create(model="fox", prompt="a", extra_body=body, stream=True)
    with pytest.raises(openai.APIError, match="leave no token"):
        list(stream)


def test_two_constraints_are_one_too_many(client):
    wanted = {"type": "json_object"}
    for extra in ({"tool_choice": "required", "tools": TOOLS}, {}):
        body = {} if extra else {"structured_outputs": {"regex": "a"}}
        with pytest.raises(openai.BadRequestError, match="not together"):
            chat(client, response_format=wanted, extra_body=body, **extra)


def test_messages_take_a_format(server):
    wanted = {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}
    body = {"model": "fox", "max_tokens": 900, "messages": [{"role": "user", "content": "hi"}]}
    status, answer = post(server, "/v1/messages", body | wanted)
    assert status == 200 and set(json.loads(answer["content"][0]["text"])) == {"n", "ok"}
    tool = {"name": "f", "input_schema": {"type": "object"}}
    forced = {"tools": [tool], "tool_choice": {"type": "any"}}
    status, answer = post(server, "/v1/messages", body | wanted | forced)
    assert (status, answer["error"]["param"]) == (400, "output_config.format")
