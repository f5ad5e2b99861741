"""The form of the Anthropic API: a message of blocks, and the events that they grow by."""

import json
from collections.abc import Iterator
from itertools import chain
from typing import Any

from .beams import BeamRun
from .errors import ApiError
from .generation import Choice, Run
from .models import ServedModel
from .replies import CallPiece, ReplyReader
from .service import Form
from .streams import Events, event
from .tools import Call

_DELTAS = {"text": ("text_delta", "text"), "thinking": ("thinking_delta", "thinking")}


class MessageForm(Form):
    """Writes one message: its thoughts, its text, its calls, each a block of its own."""

    ends = False
    constraint = "tool_choice"

    def __init__(self, model: ServedModel, reader: ReplyReader) -> None:
        self.model, self.reader = model, reader
        self._open: str | None = None  # the kind of the block that grows
        self._blocks = 0

    def whole(self, run: Run | BeamRun) -> dict[str, Any]:
        """The answer to a request that does not stream."""
        (choice,) = run.choices.values()
        thought, text = self.reader.push(choice.text, last=True)
        content: list[dict[str, Any]] = []
        if thought:
            content.append({"type": "thinking", "thinking": thought, "signature": ""})
        if self.reader.calls:
            text = text.strip()
        if text or not self.reader.calls:
            content.append({"type": "text", "text": text})
        content += [_call_block(call) for call in self.reader.calls]
        return self._frame(content, _usage(run.usage())) | self._end(choice)

    async def events(self, run: Run) -> Events:
        """The message begins, each block as it grows, why it ended."""
        (choice,) = run.choices.values()
        prompt = sum(record.prompt_tokens for record in run.records)
        begun = {"input_tokens": prompt, "output_tokens": 0}
        yield _event("message_start", message=self._frame([], begun) | _NO_END)
        yield _event("ping")
        async for _, delta in run:
            last = delta.finish_reason is not None
            thought, text = self.reader.push(delta.text, last=last)
            calls = self.reader.grown()
            # What goes on goes before text that stands behind it.
            going_on = [c for c in calls if not c.begins]
            for line in chain.from_iterable(map(self._called, going_on)):
                yield line
            for kind, piece in (("thinking", thought), ("text", text)):
                for line in self._grown(kind, piece):
                    yield line
            for line in chain.from_iterable(self._called(c) for c in calls if c.begins):
                yield line
        for line in self._closed():
            yield line
        yield _event("message_delta", delta=self._end(choice), usage=_usage(run.usage()))
        yield _event("message_stop")

    def fault(self, error: ApiError) -> str:
        """An error in the middle of a stream."""
        kind = "api_error" if error.status >= 500 else "invalid_request_error"
        return _event("error", error={"type": kind, "message": error.message})

    def _grown(self, kind: str, piece: str) -> Iterator[str]:
        if not piece:
            return
        delta, name = _DELTAS[kind]
        if self._open != kind:
            yield from self._closed()
            block = {"type": kind, name: ""} | ({"signature": ""} if kind == "thinking" else {})
            yield _event("content_block_start", index=self._blocks, content_block=block)
            self._open = kind
        grown = {"type": delta, name: piece}
        yield _event("content_block_delta", index=self._blocks, delta=grown)

    def _called(self, piece: CallPiece) -> Iterator[str]:
        """More of a call's arguments, in a block that it begins and its end closes."""
        if piece.begins:
            yield from self._closed()
            block = _call_block(piece.call) | {"input": {}}
            yield _event("content_block_start", index=self._blocks, content_block=block)
            self._open = "tool_use"
        if piece.arguments:
            grown = {"type": "input_json_delta", "partial_json": piece.arguments}
            yield _event("content_block_delta", index=self._blocks, delta=grown)
        if piece.call.done:
            yield from self._closed()

    def _closed(self) -> Iterator[str]:
        if self._open is not None:
            yield _event("content_block_stop", index=self._blocks)
            self._open = None
            self._blocks += 1

    def _end(self, choice: Choice) -> dict[str, Any]:
        """Why the message ended: a stop string is told, a stop token has no text."""
        stop = choice.stop_reason if isinstance(choice.stop_reason, str) else None
        reason = {"length": "max_tokens"}.get(choice.finish_reason or "", "end_turn")
        if stop is not None:
            reason = "stop_sequence"
        elif self.reader.calls and reason == "end_turn":
            reason = "tool_use"
        return {"stop_reason": reason, "stop_sequence": stop}

    def _frame(self, content: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model.name,
            "content": content,
            "usage": usage,
        }


_NO_END: dict[str, Any] = {"stop_reason": None, "stop_sequence": None}


def _call_block(call: Call) -> dict[str, Any]:
    try:
        given = json.loads(call.arguments)
    except ValueError:
        given = {}
    return {"type": "tool_use", "id": f"toolu_{call.id}", "name": call.name, "input": given}


def _usage(usage: dict[str, Any]) -> dict[str, int]:
    """Counts as these clients add them up: cached tokens are not among those of the input."""
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": usage["prompt_tokens"] - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage["completion_tokens"],
    }


def _event(kind: str, **fields: Any) -> str:
    return event({"type": kind, **fields}, kind)
