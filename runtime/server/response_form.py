"""The form of responses: items, and a numbered event for everything that happens."""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

from .beams import BeamRun
from .errors import ApiError
from .generation import Choice, Run, chat_logprobs, new_id
from .items import ResponseBody, sealed
from .models import ServedModel
from .replies import CallPiece, ReplyReader
from .service import Form
from .streams import Events, event
from .tools import Call

_MESSAGE = -1  # stands for the message beside the numbers of calls


class ResponseForm(Form):
    """Writes one response. `keep` takes its body when it is over."""

    ends = False
    constraint = "text.format"

    def __init__(
        self,
        body: ResponseBody,
        model: ServedModel,
        reader: ReplyReader,
        asked: dict[str, Any],
        keep: Callable[[dict[str, Any]], None],
    ) -> None:
        self.body, self.model, self.reader = body, model, reader
        self._asked, self._keep = asked, keep
        self.created = int(time.time())
        self.message_id, self.thought_id = new_id("msg_"), new_id("rs_")
        self._number = -1
        self._order: list[int] = []  # the message and the calls by their numbers, as they began
        self._thought = ""
        include = body.include or ()
        self._scored = "message.output_text.logprobs" in include
        self._carried = "reasoning.encrypted_content" in include

    def whole(self, run: Run | BeamRun) -> dict[str, Any]:
        """The answer to a request that does not stream."""
        (choice,) = run.choices.values()
        self._thought, text = self.reader.push(choice.text, last=True)
        self.reader.count_thoughts(choice)
        whole = self._response(run, choice, text)
        self._keep(whole)
        return whole

    async def events(self, run: Run) -> Events:
        """Created, each item as it grows (thoughts, then the message), its calls, completed."""
        (choice,) = run.choices.values()
        yield self._event("response.created", response=self.frame("in_progress"))
        yield self._event("response.in_progress", response=self.frame("in_progress"))
        text, open_, seen = "", False, 0
        async for _, delta in run:
            thought, piece = self.reader.push(delta.text, last=delta.finish_reason is not None)
            self.reader.count_thoughts(choice)
            calls = self.reader.grown()
            if thought:
                for line in self._thinking(thought):
                    yield line
                open_ = True
            if open_ and (piece or self.reader.calls or delta.finish_reason):
                for line in self._thought_through():
                    yield line
                open_ = False
            if piece and not text:
                for line in self._opening():
                    yield line
            if piece:
                text += piece
                begin, seen = max(seen, choice.reasoning_tokens), len(choice.tokens)
                yield self._text_event("delta", choice, begin, delta=piece)
            for line in chain.from_iterable(map(self._calling, calls)):
                yield line
        if not self._order:
            for line in self._opening():
                yield line
        whole = self._response(run, choice, text)
        for line in self._closing(text, choice, whole["output"]):
            yield line
        kind = "incomplete" if whole["status"] == "incomplete" else "completed"
        self._keep(whole)
        yield self._event(f"response.{kind}", response=whole)

    def fault(self, error: ApiError) -> str:
        """The response has failed: its last event."""
        whole = self.frame("failed")
        code = "server_error" if error.status >= 500 else "invalid_prompt"
        whole["error"] = {"code": code, "message": error.message}
        self._keep(whole)
        return self._event("response.failed", response=whole)

    def _thinking(self, thought: str) -> Iterator[str]:
        """More of the thoughts; the first of them begin their item."""
        if not self._thought:
            item = self._thoughts("in_progress") | {"content": [], "summary": []}
            yield self._event("response.output_item.added", output_index=0, item=item)
        self._thought += thought
        place = {"item_id": self.thought_id, "output_index": 0, "content_index": 0}
        yield self._event("response.reasoning_text.delta", **place, delta=thought)

    def _thought_through(self) -> Iterator[str]:
        place = {"item_id": self.thought_id, "output_index": 0}
        text = self._thought
        done = "response.reasoning_text.done"
        yield self._event(done, **place, content_index=0, text=text)
        if self._summarized:
            kind, at = "response.reasoning_summary", {**place, "summary_index": 0}
            part = {"type": "summary_text", "text": ""}
            yield self._event(f"{kind}_part.added", **at, part=part)
            yield self._event(f"{kind}_text.delta", **at, delta=text)
            yield self._event(f"{kind}_text.done", **at, text=text)
            yield self._event(f"{kind}_part.done", **at, part=part | {"text": text})
        item = self._thoughts("completed")
        yield self._event("response.output_item.done", output_index=0, item=item)

    @property
    def _summarized(self) -> bool:
        asked = self.body.reasoning
        return asked is not None and (asked.summary or asked.generate_summary) is not None

    def _thoughts(self, status: str) -> dict[str, Any]:
        text = self._thought
        return {
            "type": "reasoning",
            "id": self.thought_id,
            "status": status,
            "summary": [{"type": "summary_text", "text": text}] if self._summarized else [],
            "content": [{"type": "reasoning_text", "text": text}],
            **({"encrypted_content": sealed(text)} if self._carried else {}),
        }

    def _at(self, item: int) -> int:
        """Where the message or a call by its number stands among the items: behind the thoughts, in
        the order in which they began.
        """
        return bool(self._thought) + self._order.index(item)

    def _opening(self) -> Iterator[str]:
        self._order.append(_MESSAGE)
        item = self._message("", "in_progress", None) | {"content": []}
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        yield self._event("response.output_item.added", output_index=self._at(_MESSAGE), item=item)
        yield self._event("response.content_part.added", **self._place, part=part)

    def _closing(
        self, text: str, choice: Choice, output: Sequence[dict[str, Any]]
    ) -> Iterator[str]:
        """The end of the message, where there is one."""
        for index, item in enumerate(output):
            if item["type"] == "message":
                begin = choice.reasoning_tokens
                yield self._text_event("done", choice, begin, text=text)
                (part,) = item["content"]
                yield self._event("response.content_part.done", **self._place, part=part)
                yield self._event("response.output_item.done", output_index=index, item=item)

    def _calling(self, piece: CallPiece) -> Iterator[str]:
        """More of a call's arguments; its item begins with the first piece and ends with the
        last.
        """
        call, kind = _call_item(piece.call), "response.function_call_arguments"
        if piece.begins:
            self._order.append(piece.index)
            item = call | {"arguments": "", "status": "in_progress"}
            at = self._at(piece.index)
            yield self._event("response.output_item.added", output_index=at, item=item)
        place = {"output_index": self._at(piece.index), "item_id": call["id"]}
        if piece.arguments:
            yield self._event(f"{kind}.delta", **place, delta=piece.arguments)
        if piece.call.done:
            told = {"arguments": call["arguments"], "name": call["name"]}
            yield self._event(f"{kind}.done", **place, **told)
            at = place["output_index"]
            yield self._event("response.output_item.done", output_index=at, item=call)

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self.message_id, "output_index": self._at(_MESSAGE), "content_index": 0}

    def _text_event(self, kind: str, choice: Choice, begin: int, **fields: str) -> str:
        """An event about text, with the log probabilities of the tokens from `begin` on."""
        scores = self._scores(choice, begin)
        return self._event(f"response.output_text.{kind}", **self._place, **fields, logprobs=scores)

    def _scores(self, choice: Choice | None, begin: int) -> list[dict[str, Any]]:
        if choice is None or not self._scored:
            return []
        top = self.body.top_logprobs or 0
        tokens, found = choice.tokens[begin:], choice.logprobs[begin:]
        return chat_logprobs(self.model, tokens, found, top)["content"]

    def _event(self, kind: str, **fields: Any) -> str:
        self._number += 1
        return event({"type": kind, "sequence_number": self._number, **fields}, kind)

    def _response(self, run: Run | BeamRun, choice: Choice, text: str) -> dict[str, Any]:
        calls = self.reader.calls
        status = "completed" if choice.finish_reason == "stop" else "incomplete"
        items = {n: _call_item(call) for n, call in enumerate(calls)}
        if text or not calls:
            items = {_MESSAGE: self._message(text, status, choice), **items}
        thoughts = [self._thoughts("completed")] if self._thought else []
        output = thoughts + [items[n] for n in self._order or items]
        whole = self.frame(status) | {"output": output, "usage": _usage(run.usage())}
        if status == "completed":
            whole["completed_at"] = int(time.time())
        elif choice.finish_reason == "length":
            whole["incomplete_details"] = {"reason": "max_output_tokens"}
        return whole

    def _message(self, text: str, status: str, choice: Choice | None) -> dict[str, Any]:
        scores = self._scores(choice, choice.reasoning_tokens if choice else 0)
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": scores}
        return {
            "type": "message",
            "id": self.message_id,
            "role": "assistant",
            "status": status,
            "content": [part],
        }

    def frame(self, status: str) -> dict[str, Any]:
        """The body of a response without output."""
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "model": self.model.name,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
            **self._asked,
        }


def asked_of(body: ResponseBody, *, store: bool, sampling: dict[str, Any]) -> dict[str, Any]:
    """What a response says of what was asked for; `sampling` is what holds, asked for or not."""
    choice, reasoning, text = body.tool_choice, body.reasoning, body.text
    return {
        "background": body.background,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": reasoning.model_dump(exclude={"generate_summary"}) if reasoning else None,
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": store,
        **sampling,
        "text": {"format": (text and text.format) or {"type": "text"}, "verbosity": "medium"},
        "tool_choice": choice if choice is None or isinstance(choice, str) else choice.model_dump(),
        "tools": [tool.model_dump() for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "truncation": body.truncation or "disabled",
        "user": body.user,
    } | ({"tool_choice": "auto"} if choice is None else {})


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    # Tokens that enter the prefix cache cost nothing here and are not counted apart.
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": usage["prompt_tokens_details"] | {"cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": usage["completion_tokens_details"],
        "total_tokens": usage["total_tokens"],
    }


def _call_item(call: Call) -> dict[str, Any]:
    return {
        "type": "function_call",
        "id": f"fc_{call.id}",
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
        "status": "incomplete" if call.done and not call.is_whole else "completed",
    }
