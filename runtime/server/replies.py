"""A reply as its parts: thoughts, answer and calls of functions."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .fields import Tool
from .generation import Choice
from .models import ServedModel
from .thoughts import ThoughtReader, thought_reader
from .tools import Call, CallReader, reader_of


@dataclass(frozen=True)
class CallPiece:
    """More of the arguments of a call; whether the call begins with it. It ends with the piece with
    which the call is done.
    """

    index: int
    call: Call
    arguments: str
    begins: bool

    def to_json(self) -> dict[str, Any]:
        """The object in a chunk of a chat: its id and name are said once."""
        if self.begins:
            whole = self.call.to_json()
            function = whole["function"] | {"arguments": self.arguments}
            return {"index": self.index, **whole, "function": function}
        return {"index": self.index, "function": {"arguments": self.arguments}}


class ReplyReader:
    """Splits a reply that comes in pieces: thoughts first, then calls out of what follows them. At
    most `most` of the calls count, all where it is None.
    """

    def __init__(
        self, thoughts: ThoughtReader | None, calls: CallReader | None, most: int | None = None
    ) -> None:
        self._thoughts, self._calls, self._most = thoughts, calls, most
        self._begun = self._ended = 0  # calls that were given on, those of them that have ended
        self._given = 0  # characters of the arguments of the one that has not

    @property
    def calls(self) -> list[Call]:
        """The calls so far that count."""
        return self._calls.calls[: self._most] if self._calls else []

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
        answer = self._calls.push(answer)
        return thought, answer + (self._calls.finish() if last else "")

    def grown(self) -> list[CallPiece]:
        """What calls have grown by since this was asked last."""
        found: list[CallPiece] = []
        for index, call in enumerate(self.calls):
            if index < self._ended:
                continue
            begins = index == self._begun
            if begins or call.done or len(call.arguments) > self._given:
                found.append(CallPiece(index, call, call.arguments[self._given :], begins=begins))
            self._begun, self._given = index + 1, len(call.arguments)
            if call.done:
                self._ended, self._given = index + 1, 0
        return found


def reply_reader(
    model: ServedModel,
    prompt: Sequence[int],
    tools: Sequence[Tool],
    *,
    thoughts: bool,
    parallel: bool = True,
) -> ReplyReader:
    """A reader of the reply to a prompt, of calls of these tools: of the first one alone where they
    may not be called in parallel.
    """
    return ReplyReader(
        thought_reader(model, prompt) if thoughts else None,
        reader_of(tools) if tools else None,
        None if parallel else 1,
    )
