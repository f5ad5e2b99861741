"""What clients of the OpenAI API may ask for beside the plain; shapes by the types of theirs."""

import http.client
import json

import openai
import pytest
from ferrule.runtime.server.settings import Settings
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import TypeAdapter
from scripted import BEGIN, serving
from test_errors import post

ASK = [{"role": "user", "content": "hi"}]


def chat(server, **fields):
    status, body = post(
        server, "/v1/chat/completions", {"messages": ASK, "temperature": 0} | fields
    )
    return body if status == 200 else (status, body["error"])


def complete(server, **fields):
    status, body = post(server, "/v1/completions", {"prompt": "ab", "temperature": 0} | fields)
    return body if status == 200 else (status, body["error"])


def test_whole_answers_have_the_clients_types(server, script):
    script["<reply>"] = "hello"
    body = chat(server, logprobs=True, top_logprobs=2, service_tier="auto")
    TypeAdapter(ChatCompletion).validate_python(body)
    assert body["service_tier"] == "default" and "system_fingerprint" in body
    body = complete(server, logprobs=1, max_tokens=3)
    TypeAdapter(Completion).validate_python(body)


def test_chunks_have_the_clients_types(client, script):
    script["<reply>"] = "hello"
    asked = {"model": "fox", "messages": ASK, "temperature": 0, "logprobs": True, "stream": True}
    options = {"include_usage": True, "include_obfuscation": False}
    for chunk in client.chat.completions.create(**asked, stream_options=options):
        TypeAdapter(ChatCompletionChunk).validate_python(chunk.model_dump())


def test_tokens_of_thoughts_are_counted(client, script):
    script["<reply>"] = "<think>why</think>so"
    asked = {"model": "fox", "messages": ASK, "temperature": 0}
    done = client.chat.completions.create(**asked)
    assert done.choices[0].message.content == "so"
    marked = len("<think>why</think>")  # a token a byte
    assert done.usage.completion_tokens_details.reasoning_tokens == marked
    options = {"include_usage": True, "continuous_usage_stats": True}
    counts = [
        chunk.usage.completion_tokens_details.reasoning_tokens
        for chunk in client.chat.completions.create(**asked, stream=True, stream_options=options)
    ]
    assert counts == sorted(counts) and counts[-1] == marked
    script["<reply>"] = "<think>without end"
    usage = client.chat.completions.create(**asked).usage
    assert usage.completion_tokens == usage.completion_tokens_details.reasoning_tokens + 1
    script["<reply>"] = "no thought"
    usage = client.chat.completions.create(**asked).usage
    assert usage.completion_tokens_details.reasoning_tokens == 0


def test_tokens_as_their_ids(server):
    body = chat(
        server, logprobs=True, top_logprobs=1, max_tokens=2, return_tokens_as_token_ids=True
    )
    content = body["choices"][0]["logprobs"]["content"]
    assert all(entry["token"] == f"token_id:{entry['bytes'][0]}" for entry in content)
    assert content[0]["top_logprobs"][0]["token"] == content[0]["token"]
    body = complete(server, logprobs=1, max_tokens=2, return_tokens_as_token_ids=True, echo=True)
    found = body["choices"][0]["logprobs"]
    assert found["tokens"][:2] == ["token_id:97", "token_id:98"]
    assert found["text_offset"] == [0, 1, 2, 3]


def test_logprobs_of_a_chats_prompt(server):
    body = chat(server, prompt_logprobs=1, max_tokens=1)
    found = body["prompt_logprobs"]
    assert found[0] is None and len(found) == body["usage"]["prompt_tokens"]
    assert str(ord("u")) in found[1]
    status, error = chat(server, prompt_logprobs=1, stream=True)
    assert (status, error["param"]) == (400, "prompt_logprobs")


def test_the_last_message_is_echoed(client, script):
    script["once upon"] = " a time"
    asked = {
        "model": "fox",
        "messages": [*ASK, {"role": "assistant", "content": "once upon"}],
        "temperature": 0,
        "extra_body": {
            "echo": True, "continue_final_message": True, "add_generation_prompt": False,
        },
    }  # fmt: skip
    done = client.chat.completions.create(**asked)
    assert done.choices[0].message.content == "once upon a time"
    chunks = client.chat.completions.create(**asked, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "once upon a time"


def test_the_best_of_several(server):
    server.runner.sure = 0.0
    asked = {"max_tokens": 4, "temperature": 1.0, "seed": 5, "logit_bias": {"97": 6, "98": 5}}
    every = complete(server, **asked, n=6, logprobs=0)
    best = complete(server, **asked, n=2, best_of=6)
    server.runner.sure = 40.0

    def mean(choice):
        return sum(choice["logprobs"]["token_logprobs"]) / 4

    ranked = sorted(every["choices"], key=mean, reverse=True)
    assert [c["text"] for c in best["choices"]] == [c["text"] for c in ranked[:2]]
    assert [c["index"] for c in best["choices"]] == [0, 1]
    assert best["choices"][0]["logprobs"] is None
    assert best["usage"]["completion_tokens"] == 24
    for wrong in ({"n": 3, "best_of": 2}, {"best_of": 2, "stream": True}):
        status, error = complete(server, **wrong)
        assert (status, error["param"]) == (400, "best_of")


def test_a_prompt_alone_is_scored(server):
    body = complete(server, prompt=["the", "fox"], echo=True, logprobs=1, max_tokens=0)
    assert [c["text"] for c in body["choices"]] == ["the", "fox"]
    assert [len(c["logprobs"]["tokens"]) for c in body["choices"]] == [3, 3]
    assert {c["finish_reason"] for c in body["choices"]} == {"length"}
    assert body["usage"]["completion_tokens"] == 0
    status, error = complete(server, max_tokens=0)
    assert (status, error["param"]) == (400, "max_tokens")


def test_one_answer_may_be_asked_for_twice(server):
    body = chat(server, n=2, max_tokens=3)
    first, second = (c["message"]["content"] for c in body["choices"])
    assert first == second


def test_a_subset_of_tools(server, script):
    script['<tools>[{"type": "function", "function": {"name": "b"}}]</tools><reply>'] = "seen"
    tools = [{"type": "function", "function": {"name": name}} for name in "ab"]
    chosen = {"mode": "auto", "tools": [tools[1]]}
    choice = {"type": "allowed_tools", "allowed_tools": chosen}
    body = chat(server, tools=tools, tool_choice=choice)
    assert body["choices"][0]["message"]["content"] == "seen"
    chosen["tools"] = [{"type": "function", "function": {"name": "c"}}]
    status, error = chat(server, tools=tools, tool_choice=choice)
    assert status == 400 and "no tool is named 'c'" in error["message"]


def test_a_template_of_the_request(tokenizer):
    with serving(tokenizer, settings=Settings(own_templates=True)) as trusting:
        trusting.runner.script["hi!"] = "own"
        body = chat(trusting, chat_template="{{ messages[0].content }}!")
        assert body["choices"][0]["message"]["content"] == "own"
        status, error = chat(trusting, chat_template="{% if %}")
        assert (status, error["param"]) == (400, "chat_template")


def test_a_template_is_refused_by_default(server):
    status, error = chat(server, chat_template="x")
    assert (status, error["code"]) == (400, "unsupported_parameter")


def test_the_field_at_fault_is_the_one_that_was_sent(server):
    wrong = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nope"}}}
    assert chat(server, response_format=wrong)[1]["param"] == "response_format"
    assert chat(server, structured_outputs={"regex": "("})[1]["param"] == "structured_outputs.regex"
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "nope"}}}]
    assert chat(server, tools=tools, tool_choice="required")[1]["param"] == "tools"
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    assert chat(server, messages=image)[1]["param"] == "messages[0].content[0].type"
    assert chat(server, logit_bias={"9": 101})[1]["param"] == "logit_bias"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_bodies_that_do_not_say_that_they_are_json(server, kind):
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    for _ in range(2):  # the connection stays good
        headers = {"content-type": kind} if kind else {}
        connection.request("POST", "/v1/completions", b'{"prompt": "a"}', headers)
        answer = connection.getresponse()
        error = json.loads(answer.read())["error"]
        assert (answer.status, error["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/metrics", "/", "/nothing"])
def test_heads_of_what_can_be_got(server, path):
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("GET", path)
    whole = connection.getresponse()
    whole.read()
    connection.request("HEAD", path)
    head = connection.getresponse()
    assert head.read() == b"" and head.status == whole.status
    assert head.getheader("content-type") == whole.getheader("content-type")


def test_a_deep_body_is_refused(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    headers = {"content-type": "application/json"}
    connection.request("POST", "/v1/completions", b"[" * 100_000, headers)
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["error"]["code"]) == (400, "invalid_json")


def test_special_tokens_as_text_are_no_special_tokens_by_chance(client):
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="fox", prompt=[BEGIN, 9999], max_tokens=1)


def test_calls_stay_in_the_text_where_they_are_not_read(tokenizer):
    tools = [{"type": "function", "function": {"name": "f"}}]
    with serving(tokenizer, settings=Settings(calls=False)) as running:
        text = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
        running.runner.script["<reply>"] = text
        (choice,) = chat(running, tools=tools)["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == (text, "stop")
        running.runner.script["<reply>"] = '{"name": "f", "arguments": {}}'
        (choice,) = chat(running, tools=tools, tool_choice="required")["choices"]
        assert choice["message"]["tool_calls"][0]["function"]["name"] == "f"


def test_several_calls_are_forced_where_it_is_said(server, script):
    script["<reply>"] = '[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]'
    tools = [{"type": "function", "function": {"name": name}} for name in "fg"]
    body = chat(server, tools=tools, tool_choice="required", parallel_tool_calls=True)
    (choice,) = body["choices"]
    assert [c["function"]["name"] for c in choice["message"]["tool_calls"]] == ["f", "g"]
    assert choice["finish_reason"] == "tool_calls"


def test_an_engines_seed_makes_requests_repeatable(tokenizer):
    def texts():
        with serving(tokenizer, seed=7) as running:
            running.runner.sure = 0.0
            found = [complete(running, temperature=1.0, return_token_ids=True) for _ in range(2)]
            return [body["choices"][0]["token_ids"] for body in found]

    first, second = texts()
    assert first != second and [first, second] == texts()


def test_plain_chunks_are_those_with_more_without_it(client, script):
    script["<reply>"] = 'a "b" \\ \x7f é\n\t\u2028🦊'
    asked = {"model": "fox", "messages": ASK, "temperature": 0, "stream": True, "n": 2}
    plain = [
        c.model_dump(exclude={"id", "created"}) for c in client.chat.completions.create(**asked)
    ]
    options = {"continuous_usage_stats": True}
    full = [
        c.model_dump(exclude={"id", "created"})
        for c in client.chat.completions.create(**asked, stream_options=options)
    ]
    assert all(chunk["usage"] for chunk in full) and len(plain) > 20
    assert plain == [chunk | {"usage": None} for chunk in full]
