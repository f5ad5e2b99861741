"""The reader of tool calls gives the same whatever pieces the text comes in."""

import itertools
import json

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
        "[",
        "]",
        " ",
        "{",
    ]
)


def read(pieces):
    reader = CallReader(["f"])
    content = "".join(reader.push(piece)[0] for piece in pieces) + reader.finish()[0]
    return content, [(call.name, call.arguments) for call in reader.calls]


@settings(max_examples=400, deadline=None)
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
