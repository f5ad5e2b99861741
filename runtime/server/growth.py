"""Calls that are given on while the model writes them: a function's name once its arguments begin,
then the text of these as it comes.

Families that write the arguments as an object of JSON have it given on as they wrote it; where each
argument stands between tags, it is given on when its end tag comes. What other forms write (lists
of Python calls, arguments before the name) is read when it is whole.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from .calls import INNER, value_of

Schema = Mapping[str, Any]

_MARKS = "|".join(re.escape(mark) for mark in (*INNER, "[TOOL_CALLS]"))
_SKIPPED = rf"{_MARKS}|\[CALL_ID\][\w-]*|```(?:json|tool_code)?|\s"
_BEFORE = re.compile(rf"(?:{_SKIPPED}|functools(?=\[)|\[)*")
_AFTER = re.compile(rf"(?:{_SKIPPED}|</function>|</invoke>|[\[\],;}}])*")
_NAME = r"[\w.-]+"
_HEADS = tuple(
    re.compile(pattern)
    for pattern in (
        r'\{(?:\s*"(?:type|id|index)"\s*:\s*(?:"[^"\\]*"|\d+)\s*,)*\s*(?:"function"\s*:\s*\{\s*)?'
        rf'"name"\s*:\s*"({_NAME})"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{{)',
        rf"<function=({_NAME})>\s*(?=[{{<])",
        rf'<invoke name="({_NAME})">\s*(?=<)',
        rf"({_NAME})\s*(?=<arg_key>)",
        rf"(?:function\s+|function<｜tool▁sep｜>)?(?:functions\.)?([\w.-]+?)(?::\d+)?(?:{_SKIPPED})*(?=\{{)",
    )
)
_STRUCTURE = re.compile(r'["\\{}\[\]<]')
_TAGGED = {  # by what an argument begins with: an argument, and what ends them all
    "<parameter=": (
        re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?(</parameter>|\Z)", re.DOTALL),
        "</function>",
    ),
    "<parameter ": (
        re.compile(r'<parameter name="([^"\n]+)"[^>]*>(.*?)(</parameter>|\Z)', re.DOTALL),
        "</invoke>",
    ),
    "<arg_key>": (
        re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)(</arg_value>|\Z)", re.DOTALL),
        "",
    ),
}


class Grown(NamedTuple):
    """What a piece of text adds to arguments; `rest` is what follows their end, None where they go
    on.
    """

    arguments: str
    rest: str | None


class Arguments(Protocol):
    """The arguments of a call as they come."""

    def push(self, text: str) -> Grown:
        """Add text."""
        ...

    def finish(self) -> str:
        """What is still to be given on, now that nothing follows."""
        ...


class Head(NamedTuple):
    """The beginning of a call: its function, and where its arguments begin."""

    name: str
    end: int
    arguments: Arguments


class JsonArguments:
    """An object of JSON, up to the brace that closes it; what no JSON has outside of strings ends
    it, too.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False

    def push(self, text: str) -> Grown:
        """Add text."""
        at = 0
        if self._escaped and text:
            self._escaped, at = False, 1
        while (found := _STRUCTURE.search(text, at)) is not None:
            at = found.end()
            if self._is_end(found.group()):
                end = at if self._depth == 0 else found.start()
                return Grown(text[:end], text[end:])
            if self._escaped and at < len(text):
                self._escaped, at = False, at + 1
        return Grown(text, None)

    def _is_end(self, mark: str) -> bool:
        if self._in_string:
            self._escaped = mark == "\\"
            self._in_string = mark != '"'
        elif mark == '"':
            self._in_string = True
        elif mark in "{[":
            self._depth += 1
        elif mark in "}]":
            self._depth -= 1
            return self._depth == 0
        else:
            return True
        return False

    def finish(self) -> str:
        """Nothing: all that came was given on."""
        return ""


class TaggedArguments:
    """Arguments in tags, up to `end`, or to the tag around all of them where that is empty."""

    def __init__(self, schema: Schema, kind: str, around: str) -> None:
        self._kinds = schema.get("properties", {})
        self._pattern, own = _TAGGED[kind]
        self._begin, self._ends = kind, tuple(filter(None, (own, around)))
        self._own = own if own != around else ""
        self._held, self._begun = "", False

    def push(self, text: str) -> Grown:
        """Add text."""
        self._held += text
        given = ""
        while True:
            self._held = self._held.lstrip()
            if (end := next((e for e in self._ends if self._held.startswith(e)), None)) is not None:
                # The tag around all calls is the reader's.
                rest = self._held.removeprefix(end) if end == self._own else self._held
                return Grown(given + self._close(), rest)
            found = self._pattern.match(self._held)
            if found is None or not found.group(3):
                return self._waiting(given)
            given += self._one(found)
            self._held = self._held[found.end() :]

    def _waiting(self, given: str) -> Grown:
        """More is to come, unless what is there is neither an argument nor an end."""
        marks = (self._begin, *self._ends)
        if not self._held or any(
            m.startswith(self._held) or self._held.startswith(m) for m in marks
        ):
            return Grown(given, None)
        return Grown(given + self._close(), self._held)

    def _one(self, found: re.Match[str]) -> str:
        key, text = found.group(1).strip(), found.group(2)
        value = json.dumps(value_of(text, self._kinds.get(key, {})), ensure_ascii=False)
        begun, self._begun = self._begun, True
        return (", " if begun else "{") + json.dumps(key, ensure_ascii=False) + ": " + value

    def _close(self) -> str:
        return "}" if self._begun else "{}"

    def finish(self) -> str:
        """The last argument, if its end tag did not come, and the end."""
        found = self._pattern.match(self._held)
        return (self._one(found) if found else "") + self._close()


def head_of(text: str, schemas: Mapping[str, Schema], around: str, *, first: bool) -> Head | None:
    """The call of a known function that a text begins with, behind what families put before the
    first call or between two; None where there is none, or not yet. `around` is the tag that ends
    them all.
    """
    skipped = (_BEFORE if first else _AFTER).match(text)
    at = skipped.end() if skipped else 0
    for head in _HEADS:
        found = head.match(text, at)
        if found is not None and found.group(1) in schemas:
            return _head(found, text, schemas, around)
    return None


def _head(
    found: re.Match[str], text: str, schemas: Mapping[str, Schema], around: str
) -> Head | None:
    name, end = found.group(1), found.end()
    if text[end] == "{":
        return Head(name, end, JsonArguments())
    kind = next((k for k in _TAGGED if text.startswith(k, end)), None)
    if kind is None:
        return _without(name, text, end, around)
    return Head(name, end, TaggedArguments(schemas[name], kind, around))


def _without(name: str, text: str, end: int, around: str) -> Head | None:
    """A call without arguments, whose end tag has come."""
    for kind, (_, own) in _TAGGED.items():
        if own and text.startswith(own, end):
            return Head(name, end, TaggedArguments({}, kind, around))
    return None


def after_calls(text: str) -> str:
    """A text without what families put behind a call."""
    skipped = _AFTER.match(text)
    return text[skipped.end() :] if skipped else text
