"""/v1/responses, without state: nothing is kept, so nothing can be continued by its id."""

import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field, StrictBool, StrictStr

from .beams import BeamRun
from .chat import forced, offered_tools
from .conversation import chat_prompt
from .errors import invalid, unsupported
from .fields import (
    Body,
    Function,
    FunctionCall,
    Generation,
    Message,
    NamedFunction,
    NamedTool,
    Number,
    Positive,
    TextPart,
    Tool,
    ToolCall,
    Whole,
)
from .generation import Choice, Run, fitted, new_id
from .models import ServedModel
from .parameters import format_constraint, sampling_params, structured
from .replies import ReplyReader, reply_reader
from .service import Form, Service
from .streams import Events, event
from .tools import Call, call_schema, shown_marks


class FlatTool(Function):
    """A function tool as this endpoint writes it: without nesting."""

    type: Literal["function"]


class FlatChoice(NamedFunction):
    """A tool by name, without nesting."""

    type: Literal["function"]


class Item(Body):
    """An item of the input: a message, a call that was made, or its output."""

    type: Literal["message", "function_call", "function_call_output"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: StrictStr | list[TextPart] | None = None
    id: StrictStr | None = None
    status: StrictStr | None = None
    call_id: StrictStr | None = None
    name: StrictStr | None = None
    arguments: StrictStr | None = None
    output: StrictStr | None = None


class TextOptions(Body):
    """The format of the text."""

    format: dict[str, Any] | None = None


class Reasoning(Body):
    """How hard the model thinks, for templates that read it."""

    effort: StrictStr | None = None


class ResponseBody(Whole):
    """The body of /v1/responses."""

    model: StrictStr | None = None
    input: StrictStr | Annotated[list[Item], Field(min_length=1)]
    instructions: StrictStr | None = None
    max_output_tokens: Positive | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    stream: StrictBool = False
    store: StrictBool = False
    tools: list[FlatTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | FlatChoice | None = None
    parallel_tool_calls: StrictBool = True
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    metadata: dict[str, StrictStr] | None = None
    user: StrictStr | None = None
    # What clients send by default and what is so here in any case.
    background: StrictBool = False
    include: Annotated[list[StrictStr], Field(max_length=0)] | None = None
    truncation: Literal["disabled"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    prompt_cache_key: StrictStr | None = None
    safety_identifier: StrictStr | None = None


def routes(service: Service) -> APIRouter:
    """The endpoint over a service."""
    router = APIRouter(tags=["generation"])

    @router.post("/v1/responses")
    async def respond(body: ResponseBody, request: Request) -> Response:
        """Answer an input."""
        model = service.model(body.model)
        for name in ("store", "background"):
            if getattr(body, name):
                raise unsupported(name, "this server keeps nothing")
        tools = offered_tools(_nested(body), _choice(body))
        names = {"reasoning_effort": body.reasoning.effort} if body.reasoning else {}
        tokens = await chat_prompt(model, _messages(body), tools, names=names)
        prompt = fitted(model, tokens, None, "input")
        generation = Generation(
            model=body.model, temperature=body.temperature, top_p=body.top_p, stream=body.stream
        )
        split = service.settings.thoughts
        extra = _extra(body, generation, tools) | shown_marks(model, tools, thoughts=split)
        params = sampling_params(generation, model.sampling, **extra)
        form = ResponseForm(body, model, reply_reader(model, prompt, tools, thoughts=split))
        return await service.answer(request, generation, "resp", [prompt], params, form)

    return router


def _extra(body: ResponseBody, generation: Generation, tools: Sequence[Tool]) -> dict[str, Any]:
    extra: dict[str, Any] = {"max_tokens": body.max_output_tokens}
    constraint = format_constraint(body.text.format if body.text else None)
    extra |= structured(generation, constraint, "text.format")
    if forced(_choice(body)):
        if constraint is not None:
            raise invalid("text.format", "not together with a forced tool call")
        extra |= structured(generation, {"json": call_schema(tools)}, "tool_choice")
    return extra


def _nested(body: ResponseBody) -> list[Tool]:
    return [
        Tool(type="function", function=Function(**t.model_dump(exclude={"type"})))
        for t in body.tools or ()
    ]


def _choice(body: ResponseBody) -> str | NamedTool | None:
    if isinstance(body.tool_choice, FlatChoice):
        name = NamedFunction(name=body.tool_choice.name)
        return NamedTool(type="function", function=name)
    return body.tool_choice


def _messages(body: ResponseBody) -> list[Message]:
    messages = [Message(role="system", content=body.instructions)] if body.instructions else []
    if isinstance(body.input, str):
        return [*messages, Message(role="user", content=body.input)]
    return messages + [_message(item, number) for number, item in enumerate(body.input)]


def _message(item: Item, number: int) -> Message:
    where = f"input[{number}]"
    if item.type == "message":
        if item.role is None or item.content is None:
            raise invalid(where, "a message has role and content", "missing_required_parameter")
        return Message(role=item.role, content=item.content)
    if item.call_id is None:
        raise invalid(f"{where}.call_id", "missing", "missing_required_parameter")
    if item.type == "function_call_output":
        return Message(role="tool", content=item.output or "", tool_call_id=item.call_id)
    function = FunctionCall(name=item.name or "", arguments=item.arguments or "{}")
    call = ToolCall(id=item.call_id, type="function", function=function)
    return Message(role="assistant", tool_calls=[call])


class ResponseForm(Form):
    """The form of responses: items, and a numbered event for everything that happens."""

    ends = False

    def __init__(self, body: ResponseBody, model: ServedModel, reader: ReplyReader) -> None:
        self.body, self.model, self.reader = body, model, reader
        self.created = int(time.time())
        self.message_id, self.thought_id = new_id("msg"), new_id("rs")
        self._number = -1
        self._thought = ""

    def whole(self, run: Run | BeamRun) -> dict[str, Any]:
        """The answer to a request that does not stream."""
        (choice,) = run.choices.values()
        self._thought, text = self.reader.push(choice.text, last=True)
        return self._response(run, choice, text)

    async def events(self, run: Run) -> Events:
        """Created, each item as it grows (thoughts, then the message), its calls, completed."""
        (choice,) = run.choices.values()
        yield self._event("response.created", response=self._frame("in_progress", []))
        yield self._event("response.in_progress", response=self._frame("in_progress", []))
        text, open_ = "", False
        async for _, delta in run:
            thought, piece = self.reader.push(delta.text, last=delta.finish_reason is not None)
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
                yield self._event("response.output_text.delta", **self._place(), delta=piece)
        for line in self._closing(text, self.reader.calls):
            yield line
        whole = self._response(run, choice, text)
        kind = "incomplete" if whole["status"] == "incomplete" else "completed"
        yield self._event(f"response.{kind}", response=whole)

    def _thinking(self, thought: str) -> list[str]:
        """More of the thoughts; the first of them begin their item."""
        lines = []
        if not self._thought:
            item = self._thoughts("in_progress") | {"content": []}
            lines.append(self._event("response.output_item.added", output_index=0, item=item))
        self._thought += thought
        place = {"item_id": self.thought_id, "output_index": 0, "content_index": 0}
        return [*lines, self._event("response.reasoning_text.delta", **place, delta=thought)]

    def _thought_through(self) -> list[str]:
        place = {"item_id": self.thought_id, "output_index": 0, "content_index": 0}
        item = self._thoughts("completed")
        return [
            self._event("response.reasoning_text.done", **place, text=self._thought),
            self._event("response.output_item.done", output_index=0, item=item),
        ]

    def _thoughts(self, status: str) -> dict[str, Any]:
        return {
            "type": "reasoning",
            "id": self.thought_id,
            "status": status,
            "summary": [],
            "content": [{"type": "reasoning_text", "text": self._thought}],
        }

    @property
    def _at(self) -> int:
        """Where the message stands among the items."""
        return int(bool(self._thought))

    def _opening(self) -> list[str]:
        item = self._message("", "in_progress") | {"content": []}
        part = {"type": "output_text", "text": "", "annotations": []}
        return [
            self._event("response.output_item.added", output_index=self._at, item=item),
            self._event("response.content_part.added", **self._place(logprobs=False), part=part),
        ]

    def _closing(self, text: str, calls: Sequence[Call]) -> list[str]:
        lines = []
        if text:
            item = self._message(text, "completed")
            (part,) = item["content"]
            bare = self._place(logprobs=False)
            lines.append(self._event("response.output_text.done", **self._place(), text=text))
            lines.append(self._event("response.content_part.done", **bare, part=part))
            done = self._event("response.output_item.done", output_index=self._at, item=item)
            lines.append(done)
        for index, call in enumerate(calls, start=self._at + int(bool(text))):
            lines += self._call_events(index, call)
        return lines

    def _call_events(self, index: int, call: Call) -> list[str]:
        done = _call_item(call)
        begun = done | {"arguments": "", "status": "in_progress"}
        place = {"output_index": index, "item_id": done["id"]}
        argument = "response.function_call_arguments"
        return [
            self._event("response.output_item.added", output_index=index, item=begun),
            self._event(f"{argument}.delta", **place, delta=call.arguments),
            self._event(f"{argument}.done", **place, arguments=call.arguments, name=call.name),
            self._event("response.output_item.done", output_index=index, item=done),
        ]

    def _place(self, *, logprobs: bool = True) -> dict[str, Any]:
        place = {"item_id": self.message_id, "output_index": self._at, "content_index": 0}
        return place | ({"logprobs": []} if logprobs else {})

    def _event(self, kind: str, **fields: Any) -> str:
        self._number += 1
        return event({"type": kind, "sequence_number": self._number, **fields}, kind)

    def _response(self, run: Run | BeamRun, choice: Choice, text: str) -> dict[str, Any]:
        calls = self.reader.calls
        status = "incomplete" if choice.finish_reason == "length" else "completed"
        items = [self._message(text, status)] if text or not calls else []
        thoughts = [self._thoughts("completed")] if self._thought else []
        output = thoughts + items + [_call_item(call) for call in calls]
        usage = run.usage()
        return self._frame(status, output) | {
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": usage["prompt_tokens_details"],
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage["total_tokens"],
            }
        }

    def _message(self, text: str, status: str) -> dict[str, Any]:
        return {
            "type": "message",
            "id": self.message_id,
            "role": "assistant",
            "status": status,
            "content": [{"type": "output_text", "text": text, "annotations": []}],
        }

    def _frame(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        body = self.body
        choice = body.tool_choice
        reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "model": self.model.name,
            "status": status,
            "error": None,
            "incomplete_details": reason,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "output": output,
            "parallel_tool_calls": body.parallel_tool_calls,
            "previous_response_id": None,
            "store": False,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "tool_choice": choice.model_dump()
            if isinstance(choice, FlatChoice)
            else choice or "auto",
            "tools": [tool.model_dump() for tool in body.tools or ()],
            "usage": None,
        }


def _call_item(call: Call) -> dict[str, Any]:
    return {
        "type": "function_call",
        "id": f"fc_{call.id}",
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
        "status": "completed",
    }
