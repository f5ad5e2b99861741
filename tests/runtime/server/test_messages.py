"""/v1/messages: the shapes of the Anthropic API, whole and as events."""

import json
import urllib.error
import urllib.request

from ferrule.runtime.server.settings import Settings
from scripted import serving
from test_errors import post

TOOLS = [
    {
        "name": "weather",
        "description": "Weather of a city.",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
]
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Bern"}}</tool_call>'


def ask(server, **fields):
    body = {"model": "fox", "max_tokens": 300, "temperature": 0} | fields
    body.setdefault("messages", [{"role": "user", "content": "hi"}])
    return post(server, "/v1/messages", body)


def events(server, **fields):
    body = {"model": "fox", "max_tokens": 300, "temperature": 0, "stream": True} | fields
    body.setdefault("messages", [{"role": "user", "content": "hi"}])
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(
        f"{server.url}/v1/messages", json.dumps(body).encode(), headers
    )
    with urllib.request.urlopen(request) as answer:
        blocks = answer.read().decode().strip().split("\n\n")
    found = []
    for block in blocks:
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert found[-1]["type"] == name.removeprefix("event: ")
    return found


def test_a_message(server, script):
    script["<system>be brief</system><user>hi</user><reply>"] = "hello"
    system = [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}]
    status, body = ask(server, system=system)
    assert status == 200 and body["content"] == [{"type": "text", "text": "hello"}]
    assert (body["type"], body["role"], body["stop_reason"]) == ("message", "assistant", "end_turn")
    usage = body["usage"]
    prompt = len("<system>be brief</system><user>hi</user><reply>")
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == prompt
    assert usage["output_tokens"] == 6 and body["id"].startswith("msg_")


def test_why_it_ends(server, script):
    script["<reply>"] = "hello there"
    assert ask(server, max_tokens=3)[1]["stop_reason"] == "max_tokens"
    body = ask(server, stop_sequences=["x", " th"])[1]
    assert (body["stop_reason"], body["stop_sequence"]) == ("stop_sequence", " th")
    assert body["content"][0]["text"] == "hello"


def test_events_of_thoughts_text_and_calls(server, script):
    script["<reply>"] = "<think>hm</think>Let me look. " + CALL
    found = events(server, tools=TOOLS)
    kinds = [e["type"] for e in found if e["type"] != "content_block_delta"]
    assert kinds == [
        "message_start", "ping",
        *("content_block_start", "content_block_stop") * 3,
        "message_delta", "message_stop",
    ]  # fmt: skip
    starts = [e["content_block"] for e in found if e["type"] == "content_block_start"]
    assert [s["type"] for s in starts] == ["thinking", "text", "tool_use"]
    assert starts[2]["name"] == "weather" and starts[2]["input"] == {}
    texts = ["", "", ""]
    for event in found:
        if event["type"] == "content_block_delta":
            (value,) = [v for k, v in event["delta"].items() if k != "type"]
            texts[event["index"]] += value
    assert texts[:2] == ["hm", "Let me look. "] and json.loads(texts[2]) == {"city": "Bern"}
    pieces = [e for e in found if e.get("delta", {}).get("type") == "input_json_delta"]
    assert len(pieces) > 10
    assert found[-2]["delta"]["stop_reason"] == "tool_use"
    assert found[-2]["usage"]["output_tokens"] > 20
    assert found[0]["message"]["content"] == [] and found[0]["message"]["stop_reason"] is None


def test_a_call_and_its_result(server, script):
    script["<reply>"] = "<think>hm</think>" + CALL
    body = ask(server, tools=TOOLS, tool_choice={"type": "auto"})[1]
    thought, call = body["content"]
    assert thought["thinking"] == "hm" and call["input"] == {"city": "Bern"}
    assert body["stop_reason"] == "tool_use"
    script.clear()
    script['[weather:{"city": "Bern"}]</assistant><tool>rain</tool><user>so?</user><reply>'] = "wet"
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": "rain"}
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": body["content"]},
        {"role": "user", "content": [result, {"type": "text", "text": "so?"}]},
    ]
    assert ask(server, messages=turns)[1]["content"][0]["text"] == "wet"
    result |= {"is_error": True, "content": [{"type": "text", "text": "no"}]}
    script["<tool>Error: no</tool><user>so?</user><reply>"] = "sorry"
    assert ask(server, messages=turns)[1]["content"][0]["text"] == "sorry"


def test_a_forced_call(server, script):
    script["<reply>"] = '{"name": "weather", "arguments": {"city": "Bern"}}'
    for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
        (call,) = ask(server, tools=TOOLS, tool_choice=choice)[1]["content"]
        assert (call["type"], call["name"]) == ("tool_use", "weather")


def test_one_call_where_more_are_not_wanted(server, script):
    script["<reply>"] = CALL + CALL
    both = ask(server, tools=TOOLS)[1]["content"]
    assert [block["type"] for block in both] == ["tool_use", "tool_use"]
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    assert len(ask(server, tools=TOOLS, tool_choice=choice)[1]["content"]) == 1
    found = events(server, tools=TOOLS, tool_choice=choice)
    assert len([e for e in found if e["type"] == "content_block_start"]) == 1


def test_a_beginning_is_continued(server, script):
    script["<assistant>once"] = " more"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "once"}]
    assert ask(server, messages=turns)[1]["content"][0]["text"] == " more"


def test_tokens_are_counted(server):
    body = {"model": "fox", "messages": [{"role": "user", "content": "hi"}]}
    status, found = post(server, "/v1/messages/count_tokens", body)
    assert (status, found["input_tokens"]) == (200, len("<user>hi</user><reply>"))


def test_errors_in_their_shape(server):
    status, body = post(server, "/v1/messages", {"messages": [{"role": "user", "content": "a"}]})
    assert (status, body["type"]) == (400, "error")
    assert body["error"]["type"] == "invalid_request_error"
    assert "max_tokens" in body["error"]["message"]
    status, body = ask(server, model="cat")
    assert (status, body["error"]["type"]) == (404, "not_found_error")
    image = {"type": "image", "source": {"type": "url", "url": "x"}}
    status, body = ask(server, messages=[{"role": "user", "content": [image]}])
    assert (status, body["error"]["param"]) == (400, "messages[0].content[0].type")
    server.runner.broken = ord("~")
    found = events(server, messages=[{"role": "user", "content": "~"}])
    assert found[-1]["type"] == "error" and found[-1]["error"]["type"] == "api_error"
    status, body = ask(server, messages=[{"role": "user", "content": "~"}])
    assert (status, body["error"]["type"]) == (500, "api_error")
    server.runner.broken = None


def test_a_key_in_their_header(tokenizer):
    with serving(tokenizer, settings=Settings(api_keys=("k",))) as running:
        for header, status in (({"x-api-key": "k"}, 200), ({"x-api-key": "no"}, 401), ({}, 401)):
            body = json.dumps({"max_tokens": 1, "messages": [{"role": "user", "content": "a"}]})
            headers = {"content-type": "application/json", "anthropic-version": "2023-06-01"}
            request = urllib.request.Request(
                f"{running.url}/v1/messages", body.encode(), headers | header
            )
            try:
                with urllib.request.urlopen(request) as answer:
                    assert answer.status == status
            except urllib.error.HTTPError as error:
                assert error.code == status
                found = json.loads(error.read())
                assert (found["type"], found["error"]["type"]) == ("error", "authentication_error")
