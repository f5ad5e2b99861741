"""Tool calls in a model's text.

Two forms are read, whichever family wrote them: `<tool_call>{"name": ..., "arguments": {...}}
</tool_call>` between other text (Hermes, Qwen), and text that is JSON from its first character, an
object or a list of them, `arguments` or `parameters` beside the name (Llama 3, Mistral).
"""

import json
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from .fields import Tool

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_PREFIXES = ("<|python_tag|>", "[TOOL_CALLS]")


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
    """Splits text that comes in pieces into content and calls of the functions in `names`.

    Text that looks like a call but is none is content: a model may write anything.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._held = ""
        self._json: bool | None = None  # not known before the first character
        self.calls: list[Call] = []

    def push(self, text: str) -> tuple[str, list[Call]]:
        """Add text; returns the content and the calls that are certain now."""
        self._held += text
        if self._json is None and not self._decide():
            return "", []
        return ("", []) if self._json else self._tagged()

    def finish(self) -> tuple[str, list[Call]]:
        """What was held back, now that nothing follows."""
        rest, self._held = self._held, ""
        calls = self._parse(_without_prefix(rest)) if self._json is not False else []
        if not calls and (body := rest.strip()).startswith(_OPEN):
            # The end token may come instead of the closing tag.
            calls = self._parse(body.removeprefix(_OPEN).removesuffix(_CLOSE))
        self.calls += calls
        return ("" if calls else rest), calls

    def _decide(self) -> bool:
        start = self._held.lstrip()
        if not start or any(p.startswith(start) and p != start for p in _PREFIXES):
            return False
        self._json = start[0] in "{[" or start.startswith(_PREFIXES)
        return True

    def _tagged(self) -> tuple[str, list[Call]]:
        content, found = "", []
        while True:
            begin = self._held.find(_OPEN)
            if begin < 0:
                keep = _overlap(self._held, _OPEN)
                content += self._held[: len(self._held) - keep]
                self._held = self._held[len(self._held) - keep :]
                return content, found
            end = self._held.find(_CLOSE, begin)
            content += self._held[:begin]
            self._held = self._held[begin:]
            if end < 0:
                return content, found
            whole = self._held[: end - begin + len(_CLOSE)]
            self._held = self._held[len(whole) :]
            calls = self._parse(whole.removeprefix(_OPEN).removesuffix(_CLOSE))
            content += "" if calls else whole
            found += calls
            self.calls += calls

    def _parse(self, text: str) -> list[Call]:
        """The calls in a JSON text; none where it is anything else."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            return []
        calls = [self._call(v) for v in (values if isinstance(values, list) else [values])]
        return [] if None in calls else cast("list[Call]", calls)

    def _call(self, value: object) -> Call | None:
        if not isinstance(value, dict):
            return None
        given = cast("dict[str, Any]", value)
        arguments = given.get("arguments", given.get("parameters", {}))
        if given.get("name") not in self._names or not isinstance(arguments, dict | str):
            return None
        text = (
            arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        )
        return Call(f"call_{uuid.uuid4().hex[:24]}", given["name"], text)


def call_schema(tools: Sequence[Tool]) -> dict[str, Any]:
    """The JSON schema of one call of any of the tools, to force one."""
    return {
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


def _without_prefix(text: str) -> str:
    text = text.strip()
    for prefix in _PREFIXES:
        text = text.removeprefix(prefix)
    return text


def _overlap(text: str, tag: str) -> int:
    """The length of the longest end of the text that the tag begins with."""
    lengths = range(min(len(tag) - 1, len(text)), 0, -1)
    return next((n for n in lengths if tag.startswith(text[-n:])), 0)
