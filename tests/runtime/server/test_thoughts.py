"""Thoughts are told from answers, however the text comes in pieces."""

import openai
import pytest
from ferrule.runtime.server.replies import ReplyReader
from ferrule.runtime.server.settings import Settings
from ferrule.runtime.server.thoughts import ThoughtReader
from ferrule.runtime.server.tools import CallReader
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import ScriptRunner, serving
from test_errors import post

ASK = [{"role": "user", "content": "hi"}]
CASES = [
    # the reply, the tag that the prompt opened, thoughts, answer
    ("<think>\nA bit.\n</think>\n\nYes.", None, "A bit.\n", "Yes."),
    ("  <think>x</think>y", None, "x", "y"),
    ("Let me see.\n</think>\n\nNo </think>.", "<think>", "Let me see.\n", "No </think>."),
    ("[THINK]so[/THINK]It is.", None, "so", "It is."),
    ("Plain <think>no</think>", None, "", "Plain <think>no</think>"),
    ("<th", None, "", "<th"),
    ("<think>never ends</thi", None, "never ends</thi", ""),
    ("", None, "", ""),
    ("  spaced", None, "", "  spaced"),
    (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Four",
        None,
        "Hm.",
        "Four",
    ),
    ("<|channel|>final<|message|>At once", None, "", "At once"),
    ("<think></think>\n\nshort", None, "", "short"),
]


def read(reader: ReplyReader, parts: list[str]) -> tuple[str, str]:
    pieces = [reader.push(p, last=at == len(parts) - 1) for at, p in enumerate(parts)]
    return "".join(t for t, _ in pieces), "".join(a for _, a in pieces)


@pytest.mark.parametrize("case", CASES)
@settings(deadline=None)
@given(data=st.data())
def test_pieces_change_nothing(case, data):
    text, opened, thought, answer = case
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6).map(sorted))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(ReplyReader(ThoughtReader(opened), None), parts) == (thought, answer)


def test_a_call_behind_thoughts():
    text = (
        "<|channel|>analysis<|message|>Look.<|end|><|start|>assistant<|channel|>commentary "
        'to=functions.weather <|constrain|>json<|message|>{"city": "Bern"}'
    )
    reader = ReplyReader(ThoughtReader(), CallReader({"weather": {}}))
    assert read(reader, [text[:40], text[40:90], text[90:]]) == ("Look.", "")
    (call,) = reader.calls
    assert (call.name, call.arguments) == ("weather", '{"city": "Bern"}')


def test_a_chat_whole_and_streamed(client, script):
    script["<reply>"] = "<think>\nEasy.</think>\n\nFour."
    done = client.chat.completions.create(model="fox", messages=ASK, temperature=0)
    message = done.choices[0].message
    assert (message.content, message.reasoning_content) == ("Four.", "Easy.")
    chunks = client.chat.completions.create(model="fox", messages=ASK, temperature=0, stream=True)
    deltas = [c.choices[0].delta for c in chunks]
    assert "".join(d.content or "" for d in deltas) == "Four."
    assert "".join(getattr(d, "reasoning_content", None) or "" for d in deltas) == "Easy."
    hidden = client.chat.completions.create(
        model="fox", messages=ASK, temperature=0, extra_body={"include_reasoning": False}
    )
    message = hidden.choices[0].message
    assert message.content == "Four." and not hasattr(message, "reasoning_content")


def test_a_response_whole_and_streamed(client, script):
    script["<reply>"] = "<think>Easy.</think>Four."
    done = client.responses.create(model="fox", input="hi", temperature=0)
    assert [item.type for item in done.output] == ["reasoning", "message"]
    assert done.output[0].content[0].text == "Easy." and done.output_text == "Four."
    events = list(client.responses.create(model="fox", input="hi", temperature=0, stream=True))
    assert "".join(e.delta for e in events if e.type == "response.reasoning_text.delta") == "Easy."
    texts = [e for e in events if e.type == "response.output_text.delta"]
    assert "".join(e.delta for e in texts) == "Four." and {e.output_index for e in texts} == {1}
    assert [i.type for i in events[-1].response.output] == ["reasoning", "message"]
    kinds = [e.type for e in events]
    assert kinds.index("response.reasoning_text.done") < kinds.index("response.output_text.delta")


def test_an_operator_leaves_them_in_the_text(tokenizer):
    runner = ScriptRunner()
    runner.script["<reply>"] = "<think>Easy.</think>Four."
    with (
        serving(tokenizer, {"fox": runner}, settings=Settings(thoughts=False)) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="x") as client,
    ):
        done = client.chat.completions.create(model="fox", messages=ASK, temperature=0)
    assert done.choices[0].message.content == "<think>Easy.</think>Four."


def test_a_budget_of_thoughts_wants_tokens_that_begin_and_end_them(tokenizer):
    script = {"<reply>": "<think>" + "hm " * 30 + "</think>so"}
    asked = {"messages": ASK, "max_tokens": 60, "thinking_token_budget": 5}
    with serving(tokenizer, {"fox": ScriptRunner(script)}) as running:
        status, body = post(running, "/v1/chat/completions", asked)
        assert (status, body["error"]["param"]) == (400, "thinking_token_budget")
        # Clients of the Anthropic API give one to every model.
        thinking = {"type": "enabled", "budget_tokens": 1024}
        message = {"messages": ASK, "max_tokens": 60, "thinking": thinking}
        assert post(running, "/v1/messages", message)[0] == 200
