"""The items of /v1/responses and the messages that they are to a chat template."""

import base64
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictInt, StrictStr, model_validator

from .errors import ApiError, invalid
from .fields import (
    Body,
    Count,
    Function,
    FunctionCall,
    Message,
    NamedFunction,
    NamedTool,
    Number,
    Positive,
    TextPart,
    Tool,
    ToolCall,
    ToolSubset,
    Whole,
)


class FlatTool(Function):
    """A function tool as this endpoint writes it: without nesting."""

    type: Literal["function"]


class FlatChoice(NamedFunction):
    """A tool by name, without nesting."""

    type: Literal["function"]


class FlatSubset(Body):
    """Some of the tools by name, without nesting."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[FlatChoice], Field(min_length=1)]


class ThoughtPart(Body):
    """A piece of thoughts, or of their summary."""

    type: Literal["reasoning_text", "summary_text"]
    text: StrictStr


class Item(Body):
    """An item of the input: a message, a call that was made, its output, thoughts, or another item
    by its id.
    """

    type: Literal[
        "message", "function_call", "function_call_output", "reasoning", "item_reference"
    ] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: StrictStr | list[TextPart] | list[ThoughtPart] | None = None
    id: StrictStr | None = None
    status: StrictStr | None = None
    phase: StrictStr | None = None
    call_id: StrictStr | None = None
    name: StrictStr | None = None
    arguments: StrictStr | None = None
    parsed_arguments: Any = None
    output: StrictStr | list[TextPart] | None = None
    summary: list[ThoughtPart] | None = None
    encrypted_content: StrictStr | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_named(cls, values: Any) -> Any:
        # What has an id alone is a reference.
        if isinstance(values, dict) and values.keys() == {"id"}:
            return {**values, "type": "item_reference"}
        return values


class TextOptions(Body):
    """The format of the text."""

    format: dict[str, Any] | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(Body):
    """How hard the model thinks, for templates that read it. A summary is all of the thoughts."""

    effort: StrictStr | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class EventOptions(Body):
    """What a stream of events says beside them."""

    include_obfuscation: Literal[False] | None = None


class InputBody(Whole):
    """What makes a prompt: the body of /v1/responses/input_tokens."""

    model: StrictStr | None = None
    input: StrictStr | Annotated[list[Item], Field(min_length=1)] = ""
    instructions: StrictStr | None = None
    previous_response_id: StrictStr | None = None
    tools: list[FlatTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | FlatChoice | FlatSubset | None = None
    parallel_tool_calls: StrictBool = True
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["auto", "disabled"] | None = None


Included = Literal["message.output_text.logprobs", "reasoning.encrypted_content"]


class ResponseBody(InputBody):
    """The body of /v1/responses."""

    max_output_tokens: Positive | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    top_logprobs: Annotated[int, Field(strict=True, ge=0, le=20)] | None = None
    stream: StrictBool = False
    stream_options: EventOptions | None = None
    store: StrictBool | None = None
    background: StrictBool = False
    include: list[Included] | None = None
    max_tool_calls: Count | None = None  # of tools that a server runs: there are none
    metadata: dict[str, StrictStr] | None = None
    user: StrictStr | None = None
    priority: StrictInt | None = None
    cache_salt: StrictStr | None = None
    request_id: Annotated[str, Field(strict=True, min_length=1, max_length=128)] | None = None
    # What clients send by default and what is so here in any case.
    service_tier: Literal["auto", "default"] | None = None
    prompt_cache_key: StrictStr | None = None
    prompt_cache_retention: Literal["in_memory"] | None = None
    safety_identifier: StrictStr | None = None


def nested_tools(body: InputBody) -> list[Tool]:
    """The tools as chats have them."""
    return [
        Tool(type="function", function=Function(**t.model_dump(exclude={"type"})))
        for t in body.tools or ()
    ]


def nested_choice(body: InputBody) -> str | NamedTool | ToolSubset | None:
    """The choice of a tool as chats have it."""
    choice = body.tool_choice
    if isinstance(choice, FlatChoice):
        return _named(choice)
    if isinstance(choice, FlatSubset):
        allowed = {"mode": choice.mode, "tools": [_named(t).model_dump() for t in choice.tools]}
        return ToolSubset.model_validate({"type": "allowed_tools", "allowed_tools": allowed})
    return choice


def _named(choice: FlatChoice) -> NamedTool:
    return NamedTool(type="function", function=NamedFunction(name=choice.name))


def input_items(body: InputBody) -> list[Item]:
    """The input as items, whatever it was."""
    if isinstance(body.input, str):
        return [Item(role="user", content=body.input)] if body.input else []
    return list(body.input)


def messages_of(items: Sequence[Item]) -> list[Message]:
    """The conversation that items are. What a model said in one turn, thoughts, text and calls, is
    one message, as templates want it.
    """
    messages: list[Message] = []
    for number, item in enumerate(items):
        message = _message(item, number)
        last = messages[-1] if messages else None
        if last is not None and _continues(last, message):
            messages[-1] = _joined(last, message)
        else:
            messages.append(message)
    return messages


def _message(item: Item, number: int) -> Message:
    where = f"input[{number}]"
    if item.type == "message":
        if item.role is None or item.content is None:
            raise invalid(where, "a message has role and content", "missing_required_parameter")
        return Message(role=item.role, content=_text_of(item.content, where))
    if item.type == "reasoning":
        return Message(role="assistant", reasoning_content=thoughts_of(item))
    if item.type == "item_reference":
        raise _unknown(item, where)
    if item.call_id is None:
        raise invalid(f"{where}.call_id", "missing", "missing_required_parameter")
    if item.type == "function_call_output":
        content = _text_of(item.output or "", f"{where}.output")
        return Message(role="tool", content=content, tool_call_id=item.call_id)
    function = FunctionCall(name=item.name or "", arguments=item.arguments or "{}")
    call = ToolCall(id=item.call_id, type="function", function=function)
    return Message(role="assistant", tool_calls=[call])


def _text_of(content: str | Iterable[TextPart | ThoughtPart], where: str) -> str:
    if isinstance(content, str):
        return content
    parts = list(content)
    if any(isinstance(part, ThoughtPart) for part in parts):
        raise invalid(where, "thoughts are items of the type reasoning")
    return "\n".join(part.text for part in parts)


def _unknown(item: Item, where: str) -> ApiError:
    message = f"{where}.id: no item {item.id!r} is kept here"
    return ApiError(404, message, param=f"{where}.id", code="item_not_found")


def thoughts_of(item: Item) -> str:
    """The text of a reasoning item: its content, what a client carried for us, or its summary."""
    if item.content and not isinstance(item.content, str):
        return "".join(part.text for part in item.content)
    if item.encrypted_content is not None:
        return opened(item.encrypted_content)
    return "\n".join(part.text for part in item.summary or ())


def sealed(thoughts: str) -> str:
    """Thoughts as clients carry them from one request to the next: opaque, but no secret."""
    return base64.b64encode(thoughts.encode("utf-8", "replace")).decode()


def opened(carried: str) -> str:
    """What `sealed` gave."""
    try:
        return base64.b64decode(carried, validate=True).decode()
    except ValueError:
        raise invalid("input", "encrypted_content that is not of this server") from None


def _continues(last: Message, message: Message) -> bool:
    """Whether an assistant's message goes on in the next item."""
    if last.role != "assistant" or message.role != "assistant":
        return False
    if last.tool_calls:
        return message.tool_calls is not None
    return message.reasoning_content is None and not (last.content and message.content)


def _joined(last: Message, message: Message) -> Message:
    return Message(
        role="assistant",
        content=message.content if message.content is not None else last.content,
        reasoning_content=last.reasoning_content,
        tool_calls=[*(last.tool_calls or ()), *(message.tool_calls or ())] or None,
    )
