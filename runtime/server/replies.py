"""A reply as its parts: thoughts, answer and calls of functions."""

from bisect import bisect_left
from collections.abc import Sequence

from .fields import Tool
from .generation import Choice
from .models import ServedModel
from .thoughts import ThoughtReader, thought_reader
from .tools import Call, CallReader, reader_of


class ReplyReader:
    """Splits a reply that comes in pieces: thoughts first, then calls out of what follows them."""

    def __init__(self, thoughts: ThoughtReader | None, calls: CallReader | None) -> None:
        self._thoughts, self._calls = thoughts, calls

    @property
    def calls(self) -> list[Call]:
        """The calls so far."""
        return self._calls.calls if self._calls else []

    def count_thoughts(self, choice: Choice) -> None:
        """Tell a choice how many of its tokens are thoughts; the marks around them count, too."""
        size = self._thoughts.size if self._thoughts else 0
        choice.reasoning_tokens = bisect_left(choice.starts, size)

    def push(self, text: str, *, last: bool) -> tuple[str, str]:
        """Add text; returns the thoughts and the answer that are certain now, all of them where it
        was the last.
        """
        thought, answer = self._thoughts.push(text) if self._thoughts else ("", text)
        if last and self._thoughts:
            more, rest = self._thoughts.finish()
            thought, answer = thought + more, answer + rest
        if self._calls is None:
            return thought, answer
        answer = self._calls.push(answer)[0]
        return thought, answer + (self._calls.finish()[0] if last else "")


def reply_reader(
    model: ServedModel, prompt: Sequence[int], tools: Sequence[Tool], *, thoughts: bool
) -> ReplyReader:
    """A reader of the reply to a prompt, of calls of these tools."""
    return ReplyReader(
        thought_reader(model, prompt) if thoughts else None, reader_of(tools) if tools else None
    )
