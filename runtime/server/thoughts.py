"""The thoughts that a model writes before its answer, told from it as the text comes in pieces."""

from __future__ import annotations

from collections.abc import Sequence

from ..thinking import THOUGHT_TAGS
from .models import ServedModel

_ANALYSIS, _END = "<|channel|>analysis<|message|>", "<|end|>"
# The channels of gpt-oss beside the tags of others.
_TAGS = {**THOUGHT_TAGS, _ANALYSIS: _END}
# What gpt-oss writes before an answer; before a call it writes the channel of calls, which stays.
_HEADS = ("<|start|>assistant<|channel|>final<|message|>", "<|channel|>final<|message|>")
_CALLING = "<|start|>assistant"
_CHANNEL = "<|channel|>"
_CHANNEL_MARKS = frozenset({"<|start|>", _CHANNEL, "<|constrain|>", "<|message|>", _END})
_PLAIN_MARKS = frozenset({mark for pair in _TAGS.items() for mark in pair} - {_ANALYSIS, _END})
_TAIL = 16  # tokens of a prompt in which a tag at its end is looked for


class ThoughtReader:
    """Splits a reply into thoughts and answer. `opened` is the tag that the prompt ends with; a
    reply without a tag at its beginning is all answer.
    """

    def __init__(self, opened: str | None = None) -> None:
        self._held = ""
        self._close = _TAGS[opened] if opened else ""
        self._begun = opened is not None  # the beginning of thoughts or answer has been seen
        self._bare = self._begun  # nothing of the present part has been given out yet
        self._answer = False
        self._given = 0  # characters pushed so far
        self._end: int | None = None

    @property
    def thinking(self) -> bool:
        """Whether what comes next belongs to the thoughts."""
        return self._begun and not self._answer

    @property
    def size(self) -> int:
        """Characters of the reply up to its answer: the thoughts and the tags around them."""
        if self._end is not None:
            return self._end
        return self._given if self.thinking else 0

    def push(self, text: str) -> tuple[str, str]:
        """Add text; returns thoughts and answer that are certain now."""
        self._held += text
        self._given += len(text)
        if not self._begun and not self._begin():
            return "", ""
        thought = self._thought() if self.thinking else ""
        return thought, self._answered() if self._answer else ""

    def finish(self) -> tuple[str, str]:
        """What was held back, now that nothing follows."""
        rest, self._held = self._held, ""
        return (rest, "") if self.thinking else ("", rest)

    def _begin(self) -> bool:
        start = self._held.lstrip()
        if not start or any(tag.startswith(start) and tag != start for tag in _TAGS):
            return False
        tag = next((tag for tag in _TAGS if start.startswith(tag)), None)
        self._begun = True
        if tag is None:
            self._answer, self._bare = True, start.startswith((_CHANNEL, _CALLING))
        else:
            self._close, self._held, self._bare = _TAGS[tag], start[len(tag) :], True
        return True

    def _thought(self) -> str:
        if self._bare:
            self._held = self._held.lstrip("\n")
            self._bare = not self._held
        end = self._held.find(self._close)
        if end < 0:
            keep = _begun(self._held, self._close)
            thought = self._held[: len(self._held) - keep]
            self._held = self._held[len(self._held) - keep :]
            return thought
        thought = self._held[:end]
        self._held = self._held[end + len(self._close) :]
        self._end = self._given - len(self._held)
        self._answer = self._bare = True
        return thought

    def _answered(self) -> str:
        """The answer; what stands before its first word is left out, so it is waited for."""
        if self._bare:
            self._held = self._held.lstrip()
            if not self._held or any(h.startswith(self._held) for h in _HEADS):
                return ""
            head = next((h for h in _HEADS if self._held.startswith(h)), _CALLING)
            self._held = self._held.removeprefix(head)
            self._bare = False
        answer, self._held = self._held, ""
        return answer


def _begun(text: str, tag: str) -> int:
    """The length of the longest end of the text that the tag begins with."""
    longest = min(len(text), len(tag) - 1)
    return next((n for n in range(longest, 0, -1) if tag.startswith(text[-n:])), 0)


def thought_reader(model: ServedModel, prompt: Sequence[int]) -> ThoughtReader:
    """A reader of the reply to a prompt."""
    if model.text is None:
        return ThoughtReader()
    end = model.text.decode(list(prompt[-_TAIL:]), skip_special_tokens=False).rstrip()
    return ThoughtReader(next((tag for tag in _TAGS if end.endswith(tag)), None))


def thought_marks(model: ServedModel) -> frozenset[str]:
    """The marks that readers must see, special tokens or not: the channels' ones where a vocabulary
    has channels, for other models end their turns with some of them.
    """
    has_channels = model.text is not None and _CHANNEL in model.text.added
    return _PLAIN_MARKS | (_CHANNEL_MARKS if has_channels else frozenset())
