"""/v1/responses through the official client."""

import json
import urllib.request

import openai
import pytest
from ferrule.runtime.server.errors import ApiError
from ferrule.runtime.server.items import Item, messages_of
from ferrule.runtime.server.kept import Kept, KeptResponses
from ferrule.runtime.server.settings import Settings
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from scripted import serving, wait_for
from test_errors import post

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
    assert done.usage.output_tokens == 6 and done.id.startswith("resp_")
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
    pieces = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    assert "".join(pieces) == arguments.arguments and len(pieces) > 10
    script.clear()
    script["<tool>rain</tool><reply>"] = "wet"
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    items = [{"role": "user", "content": "hi"}, call.model_dump(), result]
    done = client.responses.create(model="fox", input=items, temperature=0)
    assert done.output_text == "wet"


def test_a_call_that_is_cut_off_is_incomplete(client, script):
    script["<reply>"] = '<tool_call>{"name": "weather", "arguments": {"city": "Bern"}}</tool_call>'
    asked = {"model": "fox", "temperature": 0, "tools": TOOLS, "input": "hi"}
    done = client.responses.create(**asked, max_output_tokens=52)
    (call,) = done.output
    assert (done.status, call.status, call.arguments) == ("incomplete", "incomplete", '{"city":')
    events = list(client.responses.create(**asked, max_output_tokens=52, stream=True))
    (ended,) = [e.item for e in events if e.type == "response.output_item.done"]
    assert (ended.status, ended.arguments) == ("incomplete", call.arguments)


def test_what_the_client_read_comes_back_in_its_items(client, script):
    script["<reply>"] = '<tool_call>{"name": "weather", "arguments": {"city": "Bern"}}</tool_call>'
    strict = {
        "strict": True,
        "parameters": TOOLS[0]["parameters"] | {"additionalProperties": False},
    }
    asked = {"model": "fox", "temperature": 0, "tools": [TOOLS[0] | strict]}
    done = client.responses.parse(input="hi", **asked)
    (call,) = done.output
    assert call.parsed_arguments == {"city": "Bern"}
    script.clear()
    script["<tool>rain</tool><reply>"] = "wet"
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    items = [{"role": "user", "content": "hi"}, *done.output, result]
    assert client.responses.parse(**asked, input=items, tool_choice="none").output_text == "wet"


@pytest.mark.parametrize(("before", "after"), [("a ", ""), ("", " b"), ("a ", " b"), ("", "")])
def test_items_stand_in_the_order_in_which_they_began(client, script, before, after):
    call = '<tool_call>{"name": "weather", "arguments": {"city": "%s"}}</tool_call>'
    script["<reply>"] = f"<think>t</think>{before}{call % 'Bern'}{after}{call % 'Basel'}"
    asked = {"model": "fox", "temperature": 0, "tools": TOOLS, "input": "hi"}
    with client.responses.stream(**asked) as stream:
        events = list(stream)
        final = stream.get_final_response()
    added = [e for e in events if e.type == "response.output_item.added"]
    assert [e.output_index for e in added] == list(range(len(final.output)))
    assert [e.item.id for e in added] == [item.id for item in final.output]
    ended = {e.output_index: e.item for e in events if e.type == "response.output_item.done"}
    assert [ended[n].id for n in range(len(final.output))] == [item.id for item in final.output]
    calls = [i for i in final.output if i.type == "function_call"]
    assert [json.loads(c.arguments)["city"] for c in calls] == ["Bern", "Basel"]
    assert final.output_text == before + after
    whole = client.responses.create(**asked)
    kinds = sorted(item.type for item in final.output)
    assert whole.output_text == before + after
    assert sorted(item.type for item in whole.output) == kinds


def test_every_event_has_the_clients_type(server, script):
    script["<reply>"] = "<think>why</think>so"
    body = {"model": "fox", "input": "hi", "temperature": 0, "reasoning": {"summary": "auto"}}
    include = ["message.output_text.logprobs", "reasoning.encrypted_content"]
    body |= {"include": include, "top_logprobs": 1, "tools": TOOLS}
    status, whole = post(server, "/v1/responses", body)
    assert status == 200
    TypeAdapter(Response).validate_python(whole)
    thoughts, message = whole["output"]
    assert thoughts["summary"][0]["text"] == "why"
    scores = message["content"][0]["logprobs"]
    assert "".join(entry["token"] for entry in scores if entry["token"] != "</s>") == "so"
    assert whole["usage"]["output_tokens_details"]["reasoning_tokens"] == len("<think>why</think>")
    events = events_of(server, body)
    for event in events:
        TypeAdapter(ResponseStreamEvent).validate_python(event)
    assert [e["sequence_number"] for e in events] == list(range(len(events)))
    kinds = [e["type"].removeprefix("response.") for e in events if "delta" not in e["type"]]
    assert kinds == [
        "created", "in_progress",
        "output_item.added", "reasoning_text.done", "reasoning_summary_part.added",
        "reasoning_summary_text.done", "reasoning_summary_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.done", "content_part.done",
        "output_item.done", "completed",
    ]  # fmt: skip
    scored = [x for e in events if e["type"] == "response.output_text.delta" for x in e["logprobs"]]
    assert "".join(entry["token"] for entry in scored if entry["token"] != "</s>") == "so"


def events_of(server, body):
    request = urllib.request.Request(
        f"{server.url}/v1/responses",
        json.dumps(body | {"stream": True}).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        lines = answer.read().decode().splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: ")]


def test_a_response_is_continued(client, script):
    script["<user>hi</user><reply>"] = "<think>hm</think>hello"
    script["<user>hi</user><assistant>hello</assistant><user>more</user><reply>"] = "again"
    first = client.responses.create(model="fox", input="hi", temperature=0)
    second = client.responses.create(
        model="fox", input="more", previous_response_id=first.id, temperature=0
    )
    assert second.output_text == "again" and second.previous_response_id == first.id
    # Instructions are those of each response alone, and a chain goes on.
    script["<system>x</system><user>hi</user>"] = ""
    chain = "<user>more</user><assistant>again</assistant><user>last</user><reply>"
    script[chain] = "end"
    with client.responses.stream(
        model="fox", input="last", previous_response_id=second.id, temperature=0
    ) as stream:
        for _ in stream:
            pass
        third = stream.get_final_response()
    assert third.output_text == "end"
    assert client.responses.retrieve(third.id).output_text == "end"


def test_items_of_all_kinds(client, script):
    script['<assistant>so[weather:{"city": "Bern"}][weather:{"city": "Rome"}]</assistant>'
           "<tool>rain</tool><tool>sun</tool><user>go</user><reply>"] = "fine"  # fmt: skip
    thoughts = {"type": "reasoning_text", "text": "hm"}
    said = {"type": "output_text", "text": "so", "annotations": [], "logprobs": []}

    def call(name, city):
        arguments = json.dumps({"city": city})
        return {
            "type": "function_call", "call_id": name, "name": "weather", "arguments": arguments,
        }  # fmt: skip

    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [thoughts]},
        {"type": "message", "role": "assistant", "id": "m", "status": "completed",
         "content": [said]},
        call("a", "Bern"),
        call("b", "Rome"),
        {"type": "function_call_output", "call_id": "a", "output": "rain"},
        {"type": "function_call_output", "call_id": "b",
         "output": [{"type": "input_text", "text": "sun"}]},
        {"role": "user", "content": "go"},
    ]  # fmt: skip
    done = client.responses.create(model="fox", input=items, temperature=0)
    assert done.output_text == "fine"
    listed = client.responses.input_items.list(done.id, order="asc")
    assert [i.type for i in listed] == [
        "message", "reasoning", "message", "function_call", "function_call",
        "function_call_output", "function_call_output", "message",
    ]  # fmt: skip
    refusal = {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}
    script["<assistant>no</assistant><user>go</user><reply>"] = "still no"
    asked = [items[0], refusal, items[-1]]
    assert client.responses.create(model="fox", input=asked, temperature=0).output_text == (
        "still no"
    )


def test_thoughts_are_carried_by_the_client(client, script):
    script["<reply>"] = "<think>hm</think>hello"
    include = ["reasoning.encrypted_content"]
    asked = {"model": "fox", "temperature": 0, "store": False, "include": include}
    first = client.responses.create(input="hi", **asked)
    thought = first.output[0].model_dump(exclude_none=True)
    assert messages_of([Item(**(thought | {"content": None}))])[0].reasoning_content == "hm"
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(input="x", previous_response_id=first.id, **asked)
    assert caught.value.code == "previous_response_not_found"
    with pytest.raises(openai.BadRequestError, match="not of this server"):
        client.responses.create(input=[thought | {"content": None, "encrypted_content": "?"}])


def test_references_to_items(client, script):
    script["<user>hi</user><reply>"] = "hello"
    script["<assistant>hello</assistant><user>more</user><reply>"] = "again"
    first = client.responses.create(model="fox", input="hi", temperature=0)
    items = [
        {"type": "item_reference", "id": first.output[0].id},
        {"role": "user", "content": "more"},
    ]
    assert client.responses.create(model="fox", input=items, temperature=0).output_text == "again"
    with pytest.raises(openai.NotFoundError, match="no item 'msg_x'"):
        client.responses.create(model="fox", input=[{"type": "item_reference", "id": "msg_x"}])


def test_a_response_is_deleted(client):
    done = client.responses.create(model="fox", input="hi", max_output_tokens=2)
    assert client.responses.retrieve(done.id).id == done.id
    client.responses.delete(done.id)
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.retrieve(done.id)
    assert caught.value.code == "response_not_found"


def test_a_response_in_the_background(client, server, script):
    script["<reply>"] = "hello"
    queued = client.responses.create(model="fox", input="hi", background=True, temperature=0)
    assert queued.status == "queued" and queued.output == []
    wait_for(lambda: client.responses.retrieve(queued.id).status == "completed")
    assert client.responses.retrieve(queued.id).output_text == "hello"
    assert client.responses.cancel(queued.id).status == "completed"
    script.clear()
    server.runner.delay = 0.02
    running = client.responses.create(model="fox", input="hi", background=True)
    assert client.responses.cancel(running.id).status == "cancelled"
    server.runner.delay = 0.0
    wait_for(lambda: server.service.unfinished == 0)
    assert client.responses.retrieve(running.id).status == "cancelled"
    for extra in ({"store": False}, {"stream": True}):
        with pytest.raises(openai.BadRequestError):
            client.responses.create(model="fox", input="hi", background=True, **extra)
    foreground = client.responses.create(model="fox", input="hi", max_output_tokens=1)
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(foreground.id)


def test_what_fails_is_a_failed_response(client, server):
    server.runner.broken = ord("~")
    (*_, last) = client.responses.create(model="fox", input="~", stream=True)
    assert last.type == "response.failed" and last.response.error.code == "server_error"
    queued = client.responses.create(model="fox", input="~", background=True)
    wait_for(lambda: client.responses.retrieve(queued.id).status == "failed")
    server.runner.broken = None


def test_tokens_of_an_input_are_counted(client):
    counted = client.responses.input_tokens.count(model="fox", input="hi", instructions="be")
    assert counted.input_tokens == len("<system>be</system><user>hi</user><reply>")


def test_a_long_conversation_is_truncated_where_asked(client, script):
    script["<system>be</system><user>hi</user><reply>"] = "short"
    items = [{"role": "user", "content": "a" * 1500}, {"role": "assistant", "content": "b" * 700}]
    items += [{"role": "user", "content": "hi"}]
    asked = {"model": "fox", "input": items, "instructions": "be", "temperature": 0}
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**asked)
    assert caught.value.code == "context_length_exceeded"
    script["</assistant><user>hi</user><reply>"] = "shorter"
    done = client.responses.create(**asked, truncation="auto")
    assert done.output_text == "shorter" and done.usage.input_tokens < 800


def test_keys_do_not_see_each_others_responses(tokenizer):
    with serving(tokenizer, settings=Settings(api_keys=("a", "b"))) as running:
        one, two = (
            openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0) for key in "ab"
        )
        done = one.responses.create(input="hi", max_output_tokens=1)
        assert one.responses.retrieve(done.id).id == done.id
        with pytest.raises(openai.NotFoundError):
            two.responses.retrieve(done.id)
        with pytest.raises(openai.BadRequestError):
            two.responses.create(input="x", previous_response_id=done.id)


def test_a_server_that_keeps_nothing(tokenizer):
    with serving(tokenizer, settings=Settings(kept_responses=0)) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        assert client.responses.create(input="hi", max_output_tokens=1).store is False
        with pytest.raises(openai.BadRequestError, match="keeps nothing"):
            client.responses.create(input="hi", store=True)


def test_room_for_responses_is_bounded():
    kept = KeptResponses(3, most=4000)
    body = {"status": "completed", "output": []}
    for number in range(5):
        kept.put(Kept(str(number), None, (), (), dict(body)))
    assert len(kept) == 3 and kept.find("2", None).id == "2"
    kept.put(Kept("5", None, (), (), dict(body)))  # 3 was not read for longest
    with pytest.raises(ApiError):
        kept.find("3", None)
    kept.put(Kept("6", None, (), (), body | {"text": "x" * 3900}))
    assert kept.bytes <= 4000 and len(kept) == 2 and kept.find("5", None)
    for name in "56":
        kept.remove(name, None)
    assert (len(kept), kept.bytes) == (0, 0)


def test_what_clients_send_by_default_is_taken(client):
    done = client.responses.create(
        model="fox",
        input="hi",
        max_output_tokens=2,
        store=False,
        background=False,
        include=[],
        truncation="disabled",
        text={"verbosity": "medium"},
        max_tool_calls=3,
        stream_options={"include_obfuscation": False},
        service_tier="auto",
        prompt_cache_key="k",
        safety_identifier="me",
        metadata={"a": "b"},
    )
    assert done.usage.output_tokens == 2 and done.metadata == {"a": "b"}
