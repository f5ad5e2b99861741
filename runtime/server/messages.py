"""/v1/messages: the same chats as clients of the Anthropic API write them."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field, StrictBool, StrictStr

from ..thinking import thought_tokens
from .chat import ToolChoice, forced_calls, offered_tools
from .conversation import chat_prompt
from .errors import invalid
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
    Tool,
    ToolCall,
    Whole,
)
from .generation import fitted
from .message_form import MessageForm
from .models import ServedModel
from .parameters import format_constraint, sampling_params, structured
from .replies import reply_reader
from .service import Service
from .tools import shown_marks


class Block(Body):
    """A piece of a message: text, a call, its result, or thoughts."""

    type: Literal["text", "tool_use", "tool_result", "thinking", "redacted_thinking"]
    text: StrictStr | None = None
    id: StrictStr | None = None
    name: StrictStr | None = None
    input: dict[str, Any] | None = None
    tool_use_id: StrictStr | None = None
    content: "StrictStr | list[Block] | None" = None
    is_error: StrictBool = False
    thinking: StrictStr | None = None
    signature: StrictStr | None = None
    data: StrictStr | None = None
    citations: list[Any] | None = None
    cache_control: dict[str, Any] | None = None  # prefixes are cached without being told


class Turn(Body):
    """A message of one side."""

    role: Literal["user", "assistant"]
    content: StrictStr | list[Block]


class ClientTool(Body):
    """A tool that the client runs."""

    type: Literal["custom"] = "custom"
    name: Annotated[str, Field(strict=True, pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
    description: StrictStr | None = None
    input_schema: dict[str, Any] | None = None
    cache_control: dict[str, Any] | None = None
    strict: StrictBool | None = None


class Choice(Body):
    """Which tools may or must be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: StrictStr | None = None
    disable_parallel_tool_use: StrictBool | None = None


class Metadata(Body):
    """Who asks."""

    user_id: StrictStr | None = None


class Thinking(Body):
    """Whether the model thinks before it answers, for templates that read it, and for how many
    tokens, where its thoughts begin and end with tokens of their own.
    """

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Positive | None = None
    display: Literal["summarized"] | None = None


class OutputConfig(Body):
    """How hard the model thinks, for templates that read it, and the format of its answer."""

    effort: StrictStr | None = None
    format: dict[str, Any] | None = None


class PromptBody(Whole):
    """What makes a prompt: the body of /v1/messages/count_tokens."""

    model: StrictStr | None = None
    messages: Annotated[list[Turn], Field(min_length=1)]
    system: StrictStr | list[Block] | None = None
    tools: list[ClientTool] | None = None
    tool_choice: Choice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class MessagesBody(PromptBody):
    """The body of /v1/messages."""

    max_tokens: Positive
    temperature: Number | None = None
    top_p: Number | None = None
    top_k: Annotated[int, Field(strict=True, ge=0)] | None = None
    stop_sequences: list[StrictStr] | None = None
    stream: StrictBool = False
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None


def routes(service: Service) -> APIRouter:
    """The endpoints over a service."""
    router = APIRouter(tags=["generation"])

    @router.post("/v1/messages")
    async def answer(body: MessagesBody, request: Request) -> Response:
        """Answer a conversation."""
        model = service.model(body.model)
        prompt, tools = await _prompt(model, body)
        generation = Generation(
            model=body.model,
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=body.top_k,
            stop=body.stop_sequences,
            stream=body.stream,
            user=body.metadata.user_id if body.metadata else None,
        )
        extra: dict[str, Any] = {"max_tokens": body.max_tokens}
        single = body.tool_choice and body.tool_choice.disable_parallel_tool_use
        calls = forced_calls(tools, _choice(body), parallel=single is False)
        if calls is not None:
            extra |= structured(generation, {"json": calls}, "tool_choice")
        if (wanted := body.output_config and body.output_config.format) is not None:
            if calls is not None:
                raise invalid("output_config.format", "not together with a forced tool call")
            constraint = format_constraint(wanted)
            extra |= structured(generation, constraint, "output_config.format")
        split = service.settings.thoughts
        read = tools if service.settings.calls or calls is not None else ()
        extra |= shown_marks(model, read, thoughts=split)
        if body.thinking and body.thinking.type == "enabled" and thought_tokens(model.text):
            extra["thinking_token_budget"] = body.thinking.budget_tokens
        params = sampling_params(generation, model.sampling, **extra)
        reader = reply_reader(model, prompt, read, thoughts=split, parallel=not single)
        form = MessageForm(model, reader)
        return await service.answer(request, generation, "msg_", [prompt], params, form)

    @router.post("/v1/messages/count_tokens")
    async def count(body: PromptBody) -> dict[str, int]:
        """How many tokens a conversation has."""
        prompt, _ = await _prompt(service.model(body.model), body)
        return {"input_tokens": len(prompt)}

    return router


async def _prompt(model: ServedModel, body: PromptBody) -> tuple[list[int], tuple[Tool, ...]]:
    tools = offered_tools(_tools(body), _choice(body))
    names: dict[str, Any] = {}
    if body.thinking is not None:
        names["enable_thinking"] = body.thinking.type != "disabled"
    if body.output_config is not None and body.output_config.effort is not None:
        names["reasoning_effort"] = body.output_config.effort
    last = body.messages[-1]
    tokens = await chat_prompt(
        model,
        _messages(body),
        tools,
        # A last message of the assistant's is the beginning of the answer.
        continue_final_message=last.role == "assistant",
        names=names,
    )
    return fitted(model, tokens, None, "messages"), tools


def _tools(body: PromptBody) -> list[Tool]:
    return [
        Tool(
            type="function",
            function=Function(name=t.name, description=t.description, parameters=t.input_schema),
        )
        for t in body.tools or ()
    ]


def _choice(body: PromptBody) -> ToolChoice:
    choice = body.tool_choice
    if choice is None:
        return None
    if choice.type == "tool":
        if choice.name is None:
            raise invalid("tool_choice.name", "missing", "missing_required_parameter")
        return NamedTool(type="function", function=NamedFunction(name=choice.name))
    return {"auto": "auto", "any": "required", "none": "none"}[choice.type]


def _messages(body: PromptBody) -> list[Message]:
    found = []
    if body.system:
        found.append(Message(role="system", content=_text(body.system, "system")))
    for number, turn in enumerate(body.messages):
        found += _turn(turn, f"messages[{number}].content")
    return found


def _turn(turn: Turn, where: str) -> list[Message]:
    """A turn as messages: results of calls are messages of their own, before what the user says."""
    if isinstance(turn.content, str):
        return [Message(role=turn.role, content=turn.content)]
    blocks = turn.content
    results = [_result(b, where) for b in blocks if b.type == "tool_result"]
    text = _text([b for b in blocks if b.type == "text"], where)
    if turn.role == "user":
        return [*results, *([Message(role="user", content=text)] if text or not results else [])]
    calls = [_call(b, where) for b in blocks if b.type == "tool_use"]
    thoughts = "".join(b.thinking or "" for b in blocks if b.type == "thinking")
    return [
        Message(
            role="assistant",
            content=text,
            tool_calls=calls or None,
            reasoning_content=thoughts or None,
        )
    ]


def _text(content: str | Sequence[Block], where: str) -> str:
    if isinstance(content, str):
        return content
    if wrong := [b.type for b in content if b.type != "text" or b.text is None]:
        raise invalid(where, f"wanted blocks of text, given {wrong[0]}")
    return "\n".join(b.text or "" for b in content)


def _result(block: Block, where: str) -> Message:
    if block.tool_use_id is None:
        raise invalid(f"{where}.tool_use_id", "missing", "missing_required_parameter")
    text = _text(block.content or "", where)
    text = f"Error: {text}" if block.is_error else text
    return Message(role="tool", content=text, tool_call_id=block.tool_use_id)


def _call(block: Block, where: str) -> ToolCall:
    if block.id is None or block.name is None:
        raise invalid(where, "a call has id and name", "missing_required_parameter")
    function = FunctionCall(name=block.name, arguments=json.dumps(block.input or {}))
    return ToolCall(id=block.id, type="function", function=function)
