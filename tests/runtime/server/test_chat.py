"""/v1/chat/completions through the official client: text, streams, tools, refusals."""

import json

import openai
import pytest

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>'
ASK = [{"role": "user", "content": "hi"}]


def test_an_answer(client, script):
    script["<user>hi</user><reply>"] = "hello there"
    done = client.chat.completions.create(model="fox", messages=ASK, temperature=0)
    (choice,) = done.choices
    assert choice.message.content == "hello there" and choice.message.role == "assistant"
    assert choice.finish_reason == "stop" and choice.message.tool_calls is None
    prompt = len("<user>hi</user><reply>")
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (prompt, 12)
    assert done.id.startswith("chatcmpl-") and done.object == "chat.completion"


def test_a_stream(client, script):
    script["<reply>"] = "héllo"
    chunks = list(
        client.chat.completions.create(
            model="fox",
            messages=ASK,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == "héllo"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == 7 and chunks[-1].choices == []
    assert {c.object for c in chunks} == {"chat.completion.chunk"}


def test_limits_by_both_names(client):
    for name in ("max_tokens", "max_completion_tokens"):
        done = client.chat.completions.create(model="fox", messages=ASK, **{name: 4})
        assert done.usage.completion_tokens == 4 and done.choices[0].finish_reason == "length"


def test_parts_of_text_are_joined_and_others_refused(client, script):
    script["<user>one\ntwo</user><reply>"] = "ok"
    parts = [{"type": "text", "text": t} for t in ("one", "two")]
    messages = [{"role": "user", "content": parts}]
    done = client.chat.completions.create(model="fox", messages=messages, temperature=0)
    assert done.choices[0].message.content == "ok"
    parts[1] = {"type": "image_url", "image_url": {"url": "data:x"}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="fox", messages=messages)
    assert caught.value.param.startswith("messages[0].content")


def test_a_tool_call_and_its_result(client, script):
    script["<reply>"] = "Let me look. " + CALL
    done = client.chat.completions.create(model="fox", messages=ASK, tools=TOOLS, temperature=0)
    (choice,) = done.choices
    assert choice.finish_reason == "tool_calls" and choice.message.content == "Let me look."
    (call,) = choice.message.tool_calls
    assert call.function.name == "weather" and json.loads(call.function.arguments) == {
        "city": "Bern"
    }
    script.clear()
    script['[weather:{"city": "Bern"}]</assistant><tool>rain</tool><reply>'] = "It rains."
    result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    messages = [*ASK, choice.message.model_dump(), result]
    done = client.chat.completions.create(model="fox", messages=messages, temperature=0)
    assert done.choices[0].message.content == "It rains."


@pytest.mark.parametrize(
    "text",
    [
        CALL,
        '{"name": "weather", "parameters": {"city": "Bern"}}',
        '<|python_tag|>{"name": "weather", "parameters": {"city": "Bern"}}',
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Bern"}}]',
        '<tool_call>{"name": "weather", "arguments": {"city": "Bern"}}',
    ],
)
def test_streamed_tool_calls_of_several_families(client, script, text):
    script["<reply>"] = text
    stream = client.chat.completions.create(
        model="fox", messages=ASK, tools=TOOLS, temperature=0, stream=True
    )
    calls, content, reason = [], "", None
    for chunk in stream:
        (choice,) = chunk.choices
        calls += choice.delta.tool_calls or []
        content += choice.delta.content or ""
        reason = choice.finish_reason or reason
    # The name and the id come once, then the arguments in the pieces in which they are written.
    assert {c.index for c in calls} == {0} and len(calls) > 10
    assert [c.function.name for c in calls if c.function.name] == ["weather"]
    assert [c.id for c in calls if c.id] == [calls[0].id]
    arguments = [c.function.arguments for c in calls]
    assert json.loads("".join(arguments)) == {"city": "Bern"} and max(map(len, arguments)) < 8
    assert (content, reason) == ("", "tool_calls")


def test_the_clients_own_reader_puts_streamed_calls_together(client, script):
    second = CALL.replace("Bern", "Basel {")
    script["<reply>"] = f"I look. {CALL} and {second}"
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    strict = {"parameters": schema | {"additionalProperties": False}, "strict": True}
    tools = [{"type": "function", "function": {"name": "weather", **strict}}]
    asked = {"model": "fox", "messages": ASK, "tools": tools, "temperature": 0}
    with client.chat.completions.stream(**asked) as stream:
        pieces = [e for e in stream if e.type == "tool_calls.function.arguments.delta"]
        (choice,) = stream.get_final_completion().choices
    assert len(pieces) > 20
    cities = [call.function.parsed_arguments["city"] for call in choice.message.tool_calls]
    assert (cities, choice.message.content) == (["Bern", "Basel {"], "I look.  and ")
    with client.chat.completions.stream(**asked, parallel_tool_calls=False) as stream:
        (choice,) = stream.get_final_completion().choices
    assert len(choice.message.tool_calls) == 1


def test_a_call_that_is_cut_off_says_so(client, script):
    script["<reply>"] = CALL
    asked = {"model": "fox", "messages": ASK, "tools": TOOLS, "temperature": 0, "max_tokens": 60}
    (choice,) = client.chat.completions.create(**asked).choices
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "length"
    assert '{"city": "Bern"}'.startswith(call.function.arguments) and call.function.arguments
    chunks = list(client.chat.completions.create(**asked, stream=True))
    pieces = [t for c in chunks for t in c.choices[0].delta.tool_calls or ()]
    assert "".join(p.function.arguments for p in pieces) == call.function.arguments


def test_what_the_client_read_and_refusals_come_back(client, script):
    script["<reply>"] = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
    one = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    function = {"name": "f", "strict": True, "parameters": one | {"additionalProperties": False}}
    asked = {
        "model": "fox",
        "temperature": 0,
        "tools": [{"type": "function", "function": function}],
    }
    hi = {"role": "user", "content": "hi"}
    message = client.chat.completions.parse(messages=[hi], **asked).choices[0].message
    assert message.tool_calls[0].function.parsed_arguments == {"a": 1}
    script.clear()
    script['[f:{"a": 1}]</assistant><tool>x</tool><reply>'] = "yes"
    script["<assistant>no</assistant><user>hi</user><reply>"] = "so"
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "x"}
    found = client.chat.completions.create(
        messages=[hi, message, result], tool_choice="none", **asked
    )
    assert found.choices[0].message.content == "yes"
    refused = {"role": "assistant", "content": None, "refusal": "no"}
    found = client.chat.completions.create(messages=[refused, hi], model="fox", temperature=0)
    assert found.choices[0].message.content == "so"


def test_text_that_only_looks_like_a_call_is_text(client, script):
    for text in ('{"name": "other", "arguments": {}}', "a <tool_call> b", "[1, 2]", "<tool"):
        script["<reply>"] = text
        done = client.chat.completions.create(model="fox", messages=ASK, tools=TOOLS, temperature=0)
        assert done.choices[0].message.content == text
        assert done.choices[0].finish_reason == "stop"


def test_tools_are_shown_unless_none_is_chosen(client, script):
    script["</tools><reply>"] = "seen"
    script["<reply>"] = "bare"
    asked = {"model": "fox", "messages": ASK, "tools": TOOLS, "temperature": 0}
    assert client.chat.completions.create(**asked).choices[0].message.content == "seen"
    bare = client.chat.completions.create(**asked, tool_choice="none")
    assert bare.choices[0].message.content == "bare"
    with pytest.raises(openai.BadRequestError, match="no tool is named 'x'"):
        choice = {"type": "function", "function": {"name": "x"}}
        client.chat.completions.create(**asked, tool_choice=choice)


def test_the_template_gets_its_own_arguments(client, script):
    script["<effort>high</effort><reply>"] = "hard"
    done = client.chat.completions.create(
        model="fox", messages=ASK, reasoning_effort="high", temperature=0
    )
    assert done.choices[0].message.content == "hard"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="fox", messages=ASK, extra_body={"chat_template_kwargs": {"messages": []}}
        )
    assert caught.value.param == "chat_template_kwargs"


def test_the_last_message_can_be_continued(client, script):
    script["<assistant>once upon"] = " a time"
    messages = [*ASK, {"role": "assistant", "content": "once upon"}]
    done = client.chat.completions.create(
        model="fox",
        messages=messages,
        temperature=0,
        extra_body={"continue_final_message": True, "add_generation_prompt": False},
    )
    assert done.choices[0].message.content == " a time"


def test_several_sequences_in_a_stream(client, script):
    script["<reply>"] = "ab"
    texts = {}
    for chunk in client.chat.completions.create(model="fox", messages=ASK, n=2, stream=True):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
    assert texts == {0: "ab", 1: "ab"}


def test_what_clients_send_by_default_is_taken(client):
    done = client.chat.completions.create(
        model="fox",
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "hi"}], "name": "me"},
        ],
        max_completion_tokens=2,
        parallel_tool_calls=True,
        store=False,
        metadata={"a": "b"},
        service_tier="auto",
        prompt_cache_key="k",
        safety_identifier="me",
        modalities=["text"],
        reasoning_effort="low",
        logit_bias={},
        extra_body={"spaces_between_special_tokens": True},
    )
    assert done.usage.completion_tokens == 2
    with pytest.raises(openai.BadRequestError, match="store"):
        client.chat.completions.create(
            model="fox", messages=[{"role": "user", "content": "a"}], store=True
        )


def test_token_ids_come_where_asked(client):
    asked = {
        "model": "fox",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 3,
        "extra_body": {"return_token_ids": True},
    }
    done = client.chat.completions.create(**asked)
    text = done.choices[0].message.content
    assert bytes(done.choices[0].token_ids).decode() == text
    assert bytes(done.prompt_token_ids).decode() == "<user>hi</user><reply>"
    chunks = list(client.chat.completions.create(**asked, stream=True))
    ids = [i for c in chunks for i in getattr(c.choices[0], "token_ids", None) or ()]
    assert bytes(ids).decode() == text
    plain = client.completions.create(
        model="fox", prompt=["th", "t"], max_tokens=3, extra_body={"return_token_ids": True}
    )
    assert [c.prompt_token_ids for c in plain.choices] == [[116, 104], [116]]
    assert all(bytes(c.token_ids).decode() == c.text for c in plain.choices)
