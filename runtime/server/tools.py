"""Tool calls in a model's text, as it comes in pieces.

A call stands between the tags of its family, or a reply is calls from its first character to its
last. What tags enclose, and what a reply without tags may be, calls.py reads.
"""

import json
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .calls import INNER, read_calls
from .fields import Tool
from .models import ServedModel
from .thoughts import thought_marks

# Tags around calls; where the second is empty the calls go on to the end of the reply.
_TAGS = {
    "<tool_call>": "</tool_call>",  # Hermes, Qwen, Granite, GLM
    "<function=": "</function>",  # Llama 3.1, Qwen3-Coder
    "<tool_calls>": "</tool_calls>",  # MiniMax-M1, Jamba
    "<minimax:tool_call>": "</minimax:tool_call>",
    "<function_calls>": "</function_calls>",  # OLMo 3
    "<|tool_call|>": "<|/tool_call|>",  # Phi-4-mini, Granite
    "<|tool_call_start|>": "<|tool_call_end|>",  # LFM2
    "<|tool_calls_section_begin|>": "<|tool_calls_section_end|>",  # Kimi
    "<｜tool▁calls▁begin｜>": "<｜tool▁calls▁end｜>",  # DeepSeek
    "<|action_start|><|plugin|>": "<|action_end|>",  # InternLM
    "<|python_tag|>": "",  # Llama 3
    "<|channel|>commentary to=": "",  # gpt-oss
    "[TOOL_CALLS]": "",  # Mistral
}
_LONGEST = max(map(len, _TAGS))
_FIRST = "functools"  # Phi-4-mini, before a list
_MARKS = frozenset(
    {*_TAGS, *filter(None, _TAGS.values()), *INNER, "<|action_start|>", "<|plugin|>"}
)


# Nine letters and digits: Mistral's templates refuse a conversation with other ids in it.
_ALPHABET = string.ascii_letters + string.digits


@dataclass(frozen=True)
class Call:
    """A call of a function: its arguments are JSON text."""

    id: str
    name: str
    arguments: str

    def to_json(self, index: int | None = None) -> dict[str, Any]:
        """The object in a message, or in a chunk where it has an index."""
        found = {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }
        return found if index is None else {"index": index, **found}


class CallReader:
    """Splits text that comes in pieces into content and calls of functions.

    `schemas` are the functions by name, with the JSON schemas of their parameters. Text that looks
    like a call but is none is content: a model may write anything.
    """

    def __init__(self, schemas: Mapping[str, Mapping[str, Any]]) -> None:
        self._schemas = dict(schemas)
        self._held = ""
        self._whole: bool | None = None  # all of the reply may be calls; not known at first
        self.calls: list[Call] = []

    def push(self, text: str) -> tuple[str, list[Call]]:
        """Add text; returns the content and the calls that are certain now."""
        self._held += text
        if self._whole is None and not self._decide():
            return "", []
        return ("", []) if self._whole else self._tagged()

    def finish(self) -> tuple[str, list[Call]]:
        """What was held back, now that nothing follows."""
        rest, self._held = self._held, ""
        body = rest.strip().removeprefix(_FIRST) if self._whole is not False else rest
        calls = self._read(body) if self._whole is not False else self._unclosed(rest)
        return ("" if calls else rest), calls

    def _decide(self) -> bool:
        """Whether enough has come to tell a reply that is calls from one with tags in it."""
        start = self._held.lstrip()
        beginnings = (*_TAGS, _FIRST)
        if not start or any(b.startswith(start) and b != start for b in beginnings):
            return False
        self._whole = start.startswith(("{", "[", _FIRST)) and not start.startswith(tuple(_TAGS))
        return True

    def _tagged(self) -> tuple[str, list[Call]]:
        content, found = "", []
        while True:
            begin, tag = _first_tag(self._held)
            if tag is None:
                keep = _begun_tag(self._held)
                content += self._held[: len(self._held) - keep]
                self._held = self._held[len(self._held) - keep :]
                return content, found
            content += self._held[:begin]
            self._held = self._held[begin:]
            close = _TAGS[tag]
            end = self._held.find(close, len(tag)) if close else -1
            if end < 0:
                return content, found
            whole = self._held[: end + len(close)]
            self._held = self._held[len(whole) :]
            calls = self._read(_body(whole, tag))
            content += "" if calls else whole
            found += calls

    def _unclosed(self, rest: str) -> list[Call]:
        """Calls behind a tag that nothing closes: the reply's end does."""
        begin, tag = _first_tag(rest)
        if tag is None or rest[:begin].strip():
            return []
        # Mistral writes its tag before each of several calls.
        bodies = _body(rest[begin:], tag).split(tag) if not _TAGS[tag] else [_body(rest, tag)]
        return [call for body in bodies for call in self._read(body)]

    def _read(self, body: str) -> list[Call]:
        calls = [_call(*found) for found in read_calls(body, self._schemas)]
        self.calls += calls
        return calls


def _call(name: str, arguments: dict[str, Any] | str) -> Call:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return Call("".join(secrets.choice(_ALPHABET) for _ in range(9)), name, text)


def _body(whole: str, tag: str) -> str:
    """What tags enclose; a tag that names the function stays."""
    if tag == "<function=":
        return whole
    body = whole.strip().removeprefix(tag)
    return body.removesuffix(_TAGS[tag]) if _TAGS[tag] else body


def _first_tag(text: str) -> tuple[int, str | None]:
    found = [(at, -len(tag), tag) for tag in _TAGS if (at := text.find(tag)) >= 0]
    return (min(found)[0], min(found)[2]) if found else (-1, None)


def reader_of(tools: Sequence[Tool]) -> CallReader:
    """A reader of the calls of some tools."""
    return CallReader({t.function.name: t.function.parameters or {} for t in tools})


def shown_marks(model: ServedModel, tools: Sequence[Tool], *, thoughts: bool) -> dict[str, Any]:
    """The parameter that shows readers the marks of calls and of thoughts, where they are special
    tokens.
    """
    if model.text is None:
        return {}
    marks = (thought_marks(model) if thoughts else frozenset()) | (_MARKS if tools else frozenset())
    added = model.text.added
    ids = sorted({added[m] for m in marks if m in added} & model.text.special_ids)
    return {"shown_special_ids": ids} if ids else {}


def call_schema(tools: Sequence[Tool], *, several: bool = False) -> dict[str, Any]:
    """The JSON schema of one call of any of the tools, or of a list of them, to force one."""
    one = {
        "anyOf": [
            {
                "type": "object",
                "properties": {
                    "name": {"const": tool.function.name},
                    "arguments": tool.function.parameters or {"type": "object"},
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for tool in tools
        ]
    }
    return {"type": "array", "items": one, "minItems": 1} if several else one


def _begun_tag(text: str) -> int:
    """The length of the longest end of the text that a tag begins with."""
    for at in range(max(0, len(text) - _LONGEST + 1), len(text)):
        end = text[at:]
        if any(tag.startswith(end) for tag in _TAGS):
            return len(end)
    return 0
