"""/v1/responses through the official client."""

import json

import openai
import pytest

TOOLS = [
    {
        "type": "function",
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
]


def test_a_response(client, script):
    script["<system>be brief</system><user>hi</user><reply>"] = "hello"
    done = client.responses.create(model="fox", input="hi", instructions="be brief", temperature=0)
    assert done.output_text == "hello" and done.status == "completed"
    assert done.usage.output_tokens == 6 and done.id.startswith("resp-")
    short = client.responses.create(model="fox", input="hi", max_output_tokens=2, temperature=0)
    assert short.status == "incomplete"
    assert short.incomplete_details.reason == "max_output_tokens"


def test_events(client, script):
    script["<reply>"] = "hello"
    events = list(client.responses.create(model="fox", input="hi", temperature=0, stream=True))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    kinds = [e.type for e in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    deltas = [e.delta for e in events if e.type == "response.output_text.delta"]
    assert "".join(deltas) == "hello" == events[-1].response.output_text


def test_the_client_assembles_the_stream(client, script):
    script["<reply>"] = "hello"
    with client.responses.stream(model="fox", input="hi", temperature=0) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == "hello"


def test_calls(client, script):
    script["<tool>rain</tool>"] = ""
    script["<reply>"] = '<tool_call>{"name": "weather", "arguments": {"city": "Bern"}}</tool_call>'
    asked = {"model": "fox", "temperature": 0, "tools": TOOLS}
    done = client.responses.create(input="hi", **asked)
    (call,) = done.output
    assert call.type == "function_call" and json.loads(call.arguments) == {"city": "Bern"}
    events = list(client.responses.create(input="hi", stream=True, **asked))
    (arguments,) = [e for e in events if e.type == "response.function_call_arguments.done"]
    assert json.loads(arguments.arguments) == {"city": "Bern"}
    script.clear()
    script["<tool>rain</tool><reply>"] = "wet"
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    items = [{"role": "user", "content": "hi"}, call.model_dump(), result]
    done = client.responses.create(model="fox", input=items, temperature=0)
    assert done.output_text == "wet"


def test_what_needs_state_is_refused(client):
    for extra in ({"store": True}, {"previous_response_id": "resp-1"}, {"background": True}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model="fox", input="hi", **extra)
        assert caught.value.code == "unsupported_parameter" and caught.value.param in extra


def test_what_clients_send_by_default_is_taken(client):
    done = client.responses.create(
        model="fox",
        input="hi",
        max_output_tokens=2,
        store=False,
        background=False,
        include=[],
        truncation="disabled",
        service_tier="auto",
        prompt_cache_key="k",
        safety_identifier="me",
        metadata={"a": "b"},
    )
    assert done.usage.output_tokens == 2 and done.metadata == {"a": "b"}
