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
from .growth import Arguments, after_calls, head_of
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


@dataclass(eq=False)
class Call:
    """A call of a function: its arguments are JSON text, which grows until it is `done`."""

    id: str
    name: str
    arguments: str = ""
    done: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether its arguments are JSON: those of a reply that was cut may be none."""
        try:
            json.loads(self.arguments)
        except (ValueError, RecursionError):
            return False
        return True

    def to_json(self) -> dict[str, Any]:
        """The object in a message."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


class CallReader:
    """Splits text that comes in pieces into content and calls of functions.

    `schemas` are the functions by name, with the JSON schemas of their parameters. Text that looks
    like a call but is none is content: a model may write anything. What names an offered function
    and begins its arguments is a call, however it goes on.
    """

    def __init__(self, schemas: Mapping[str, Mapping[str, Any]]) -> None:
        self._schemas = dict(schemas)
        self._held = ""
        self._whole: bool | None = None  # all of the reply may be calls; not known at first
        self._tag: str | None = None  # around the calls that are read; "" where all of the reply is
        self._growing: Arguments | None = None  # of the last call
        self.calls: list[Call] = []

    def push(self, text: str) -> str:
        """Add text; returns the content that is certain now."""
        self._held += text
        if self._whole is None and not self._decide():
            return ""
        content = ""
        while self._held:
            piece, goes_on = self._next()
            content += piece
            if not goes_on:
                break
        return content

    def finish(self) -> str:
        """The content that was held back, now that nothing follows."""
        rest, self._held = self._held, ""
        if self._growing is not None:
            self.calls[-1].arguments += self._growing.finish()
            self._end_call()
            return ""
        if self._tag is not None:
            return after_calls(rest)
        body = rest.strip().removeprefix(_FIRST) if self._whole is not False else rest
        read = self._read(body) if self._whole is not False else self._unclosed(rest)
        return "" if read else rest

    def _decide(self) -> bool:
        """Whether enough has come to tell a reply that is calls from one with tags in it."""
        start = self._held.lstrip()
        beginnings = (*_TAGS, _FIRST)
        if not start or any(b.startswith(start) and b != start for b in beginnings):
            return False
        self._whole = start.startswith(("{", "[", _FIRST)) and not start.startswith(tuple(_TAGS))
        return True

    def _next(self) -> tuple[str, bool]:
        """The content of what comes next, and whether it was whole."""
        if self._growing is not None:
            return "", self._grow(self._growing)
        if self._tag is not None:
            return self._behind_call(_TAGS.get(self._tag, ""))
        if self._whole:
            return "", self._begin("", 0, first=True)
        return self._outside()

    def _grow(self, arguments: Arguments) -> bool:
        grown = arguments.push(self._held)
        self.calls[-1].arguments += grown.arguments
        self._held = grown.rest or ""
        if grown.rest is not None:
            self._end_call()
        return grown.rest is not None

    def _end_call(self) -> None:
        self.calls[-1].done, self._growing = True, None

    def _begin(self, tag: str, at: int, *, first: bool) -> bool:
        """Begin a call of a known function, if one stands behind a tag or another call."""
        found = head_of(self._held[at:], self._schemas, _TAGS.get(tag, ""), first=first)
        if found is None:
            return False
        self._tag, self._growing = tag, found.arguments
        self._held = self._held[at + found.end :]
        self.calls.append(Call(_new_id(), found.name))
        return True

    def _behind_call(self, close: str) -> tuple[str, bool]:
        """Another call, or the end of those in a tag; what else stands there is content."""
        if self._begin(self._tag or "", 0, first=False):
            return "", True
        end = self._held.find(close) if close else -1
        if end < 0:
            return "", False
        content = after_calls(self._held[:end])
        self._held, self._tag = self._held[end + len(close) :], None
        return content, True

    def _outside(self) -> tuple[str, bool]:
        """Content up to a tag, and behind it a call that begins, or calls that are whole."""
        begin, tag = _first_tag(self._held)
        if tag is None:
            at = len(self._held) - _begun_tag(self._held)
            content, self._held = self._held[:at], self._held[at:]
            return content, False
        content, self._held = self._held[:begin], self._held[begin:]
        if self._begin(tag, _inside(tag), first=True):
            return content, True
        close = _TAGS[tag]
        end = self._held.find(close, len(tag)) if close else -1
        if end < 0:
            return content, False
        whole = self._held[: end + len(close)]
        self._held = self._held[len(whole) :]
        return content + ("" if self._read(_body(whole, tag)) else whole), True

    def _unclosed(self, rest: str) -> bool:
        """Whether there are calls behind a tag that nothing closes: the reply's end does."""
        begin, tag = _first_tag(rest)
        if tag is None or rest[:begin].strip():
            return False
        # Mistral writes its tag before each of several calls.
        bodies = _body(rest[begin:], tag).split(tag) if not _TAGS[tag] else [_body(rest, tag)]
        read = [self._read(body) for body in bodies]
        return any(read)

    def _read(self, body: str) -> bool:
        """Take the calls of a body that is whole; whether there are any."""
        found = read_calls(body, self._schemas)
        for name, arguments in found:
            text = arguments
            if not isinstance(text, str):
                text = json.dumps(arguments, ensure_ascii=False)
            self.calls.append(Call(_new_id(), name, text, done=True))
        return bool(found)


def _new_id() -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(9))


def _inside(tag: str) -> int:
    """Where a body begins behind a tag; one that names the function is part of it."""
    return 0 if tag == "<function=" else len(tag)


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
