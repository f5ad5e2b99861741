"""The reader of tool calls gives the same whatever pieces the text comes in."""

import itertools
import json
import re

import pytest
from ferrule.runtime.server.tools import CallReader
from hypothesis import given, settings
from hypothesis import strategies as st

PIECES = st.sampled_from(
    [
        "<tool_call>",
        "</tool_call>",
        '{"name": "f", "arguments": {"a": 1}}',
        '{"name": "g", "arguments": {}}',
        "text ",
        "<",
        "<|python_tag|>",
        "[TOOL_CALLS]",
        "f",
        "[ARGS]",
        "<function=f>",
        "</function>",
        "functools",
        "[",
        "]",
        " ",
        "{",
    ]
)


def read(pieces):
    reader = CallReader({"f": {}})
    content = "".join(map(reader.push, pieces)) + reader.finish()
    return content, [(call.name, call.arguments) for call in reader.calls]


@settings(max_examples=200, deadline=None)
@given(st.lists(PIECES, max_size=8), st.data())
def test_pieces_change_nothing(parts, data):
    text = "".join(parts)
    whole = read([text])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    edges = [0, *cuts, len(text)]
    assert read([text[a:b] for a, b in itertools.pairwise(edges)]) == whole
    if not whole[1]:
        assert whole[0] == text


def test_several_calls_and_the_text_between():
    call = '<tool_call>{"name": "f", "arguments": {"n": %d}}</tool_call>'
    content, calls = read(list("one " + call % 1 + " two " + call % 2))
    assert content == "one  two "
    assert [json.loads(arguments)["n"] for _, arguments in calls] == [1, 2]
    listed = '[{"name": "f", "arguments": {"n": 1}}, {"name": "f", "arguments": {"n": 2}}]'
    assert len(read([listed])[1]) == 2


SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
}
WANTED = ("weather", {"city": "1 Bern", "days": 3})
ARGUMENTS = '{"city": "1 Bern", "days": 3}'
OBJECT = '{"name": "weather", "arguments": ' + ARGUMENTS + "}"
KIMI = "<|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
FAMILIES = {
    "hermes": f"<tool_call>\n{OBJECT}\n</tool_call>",
    "llama 3": '{"name": "weather", "parameters": ' + ARGUMENTS + "}",
    "llama 3, its tag": f"<|python_tag|>{OBJECT}",
    "llama 3.1, tagged": f"<function=weather>{ARGUMENTS}</function>",
    "llama 4": '[weather(city="1 Bern", days=3)]',
    "mistral": f"[TOOL_CALLS][{OBJECT}]",
    "mistral, newer": f"[TOOL_CALLS]weather[ARGS]{ARGUMENTS}",
    "mistral, with ids": f"[TOOL_CALLS]weather[CALL_ID]a1b2[ARGS]{ARGUMENTS}",
    "qwen coder": "<tool_call>\n<function=weather>\n<parameter=city>\n1 Bern\n</parameter>\n"
    "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
    "glm": "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>1 Bern</arg_value>\n"
    "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>",
    "minimax": '<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">1 Bern'
    '</parameter>\n<parameter name="days">3</parameter>\n</invoke>\n</minimax:tool_call>',
    "phi": f"functools[{OBJECT}]",
    "granite": f"<|tool_call|>[{OBJECT}]",
    "olmo": "<function_calls>weather(city='1 Bern', days=3)</function_calls>",
    "lfm": '<|tool_call_start|>[weather(city="1 Bern", days=3)]<|tool_call_end|>',
    "deepseek v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n"
    f"```json\n{ARGUMENTS}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "deepseek v3.1": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>"
    f"{ARGUMENTS}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "kimi": f"<|tool_calls_section_begin|>{KIMI}{ARGUMENTS}<|tool_call_end|>"
    "<|tool_calls_section_end|>",
    "internlm": f"<|action_start|><|plugin|>{OBJECT}<|action_end|>",
    "openai": '{"function": ' + OBJECT + "}",
}


def test_ids_are_those_that_every_template_takes():
    reader = CallReader({"weather": SCHEMA})
    reader.push(FAMILIES["hermes"] * 3)
    ids = {call.id for call in reader.calls}
    assert len(ids) == 3 and all(re.fullmatch("[a-zA-Z0-9]{9}", each) for each in ids)


def calls_of(text, size):
    reader = CallReader({"weather": SCHEMA, "time": {}})
    content = "".join(reader.push(text[i : i + size]) for i in range(0, len(text), size))
    content += reader.finish()
    assert all(call.done for call in reader.calls)
    return content.strip(), [(c.name, c.arguments) for c in reader.calls]


def read_calls(text, size):
    content, calls = calls_of(text, size)
    return content, [(name, json.loads(arguments)) for name, arguments in calls]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_calls_of_every_family(family):
    text = FAMILIES[family]
    for size in (1, 3, len(text)):
        assert read_calls(text, size) == ("", [WANTED])
    unknown = text.replace("weather", "tornado")
    assert calls_of(unknown, 5) == (unknown.strip(), [])
    for end in range(0, len(text), 9):  # whatever is cut off, no text is lost
        content, calls = calls_of(text[:end], 4)
        assert calls or content == text[:end].strip()
        assert calls_of(text[:end], 1000) == (content, calls)


GROWING = sorted(set(FAMILIES) - {"llama 4", "olmo", "lfm"})
"""Those whose calls are given on before they are whole."""


@pytest.mark.parametrize("family", GROWING)
def test_arguments_come_while_they_are_written(family):
    text = FAMILIES[family]
    place = text.index("days")
    reader = CallReader({"weather": SCHEMA})
    for character in text[:place]:
        reader.push(character)
    (call,) = reader.calls
    assert call.name == "weather" and not call.done
    assert call.arguments.startswith('{"city": "1 Bern"')
    given = call.arguments
    for character in text[place:]:
        reader.push(character)
        assert call.arguments.startswith(given)
        given = call.arguments
    reader.finish()
    assert call.done and json.loads(given) == WANTED[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_pieces_of_a_family_change_nothing(family):
    text = f"{FAMILIES[family]} and {FAMILIES[family]}"
    wanted = calls_of(text, len(text))
    for size in (1, 2, 5, 11):
        assert calls_of(text, size) == wanted


BRACES = '{"city": "a}]<\\\\\\" {[", "days": {"n": [1, {}]}}'


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_braces_and_quotes_in_strings_end_nothing(size):
    reader = CallReader({"weather": SCHEMA})
    text = f'<tool_call>{{"name": "weather", "arguments": {BRACES}}}</tool_call> done'
    content = "".join(reader.push(text[i : i + size]) for i in range(0, len(text), size))
    assert content + reader.finish() == " done"
    assert [c.arguments for c in reader.calls] == [BRACES]
    assert json.loads(BRACES)["city"] == 'a}]<\\" {['


@pytest.mark.parametrize(
    ("text", "content", "arguments"),
    [
        ('<tool_call>{"name": "weather", "arguments": {"city": "Be', "", '{"city": "Be'),
        ('<tool_call>{"name": "weather", "arguments": {"a": 1</tool_call> x', " x", '{"a": 1'),
        ('{"name": "weather", "parameters": {}} is what I call', "is what I call", "{}"),
        ('<tool_call>{"name": "weather", "arguments": {}} why?</tool_call>.', "why?.", "{}"),
        ("<tool_call><function=weather>\n</function></tool_call>", "", "{}"),
        ("<tool_call><function=weather><parameter=city>Be", "", '{"city": "Be"}'),
    ],
)
def test_what_begins_as_a_call_is_one(text, content, arguments):
    for size in (1, 4, 1000):
        reader = CallReader({"weather": SCHEMA})
        found = "".join(reader.push(text[i : i + size]) for i in range(0, len(text), size))
        assert found + reader.finish() == content
        assert [(c.name, c.arguments) for c in reader.calls] == [("weather", arguments)]


TWICE = {
    "hermes": "Well. " + 2 * FAMILIES["hermes"],
    "mistral": "Well. [TOOL_CALLS]" + 2 * f"weather[ARGS]{ARGUMENTS}",
    "mistral, a tag each": "Well. " + 2 * FAMILIES["mistral, newer"],
    "kimi": "Well. <|tool_calls_section_begin|>"
    + 2 * (KIMI + ARGUMENTS + "<|tool_call_end|>")
    + "<|tool_calls_section_end|>",
    "llama 3": f"Well. <|python_tag|>{OBJECT}; {OBJECT}",
    "olmo": "Well. <function_calls>[weather(city='1 Bern', days=3), "
    "weather(city='1 Bern', days=3)]</function_calls>",
}


@pytest.mark.parametrize("family", TWICE)
def test_text_and_then_two_calls(family):
    for size in (1, 7, 500):
        assert read_calls(TWICE[family], size) == ("Well.", [WANTED, WANTED])


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2, 3]",
        '{"name": "weather"',
        "[weather(1)]",
        "[weather(city=open('x'))]",
        '{"name": 5, "arguments": {}}',
        "<tool_call>weather</tool_call",
        "[TOOL_CALLS]" + "[" * 50_000,
        "<function_calls>" + "(" * 50_000 + "</function_calls>",
        "a <b> c [d] {e}",
    ],
)
def test_what_is_no_call_is_text(text):
    assert calls_of(text, 1000) == (text.strip(), [])


def test_marks_that_are_special_tokens_are_shown_to_the_reader(tokenizer):
    from ferrule.runtime.text import Text, TextStream

    text = Text(tokenizer)
    stream = TextStream(text, shown=[256])
    shown = "".join(stream.push(token) for token in (256, 97, 257, 98)) + stream.finish()
    assert shown == "<s>ab"  # the end token stays hidden
