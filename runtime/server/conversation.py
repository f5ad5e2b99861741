"""Messages and tools as chat templates want them, and the prompt that a template writes."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..chat import ChatTemplate
from ..errors import RequestError
from .errors import invalid, refused
from .fields import Message, Tool
from .generation import encode
from .models import ServedModel

# What no template reads as it stands in a message.
_OF_CLIENTS = {"annotations", "parsed", "refusal", "tool_calls"}


def template_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as plain objects: text parts joined by line ends, arguments parsed."""
    return [_message(message, number) for number, message in enumerate(messages)]


def _message(message: Message, number: int) -> dict[str, Any]:
    plain = message.model_dump(exclude_none=True, exclude=_OF_CLIENTS)
    if message.content is None and message.role != "assistant":
        raise invalid(f"messages[{number}].content", "missing", "missing_required_parameter")
    plain["content"] = message.plain_content
    if message.tool_calls:
        plain["tool_calls"] = [
            _call(call.id, call.function.name, call.function.arguments, number)
            for call in message.tool_calls
        ]
    return plain


def _call(name_id: str, name: str, arguments: str, number: int) -> dict[str, Any]:
    # Templates write arguments with `tojson`: they want the object, not its text.
    try:
        parsed = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        raise invalid(f"messages[{number}].tool_calls", "arguments are not JSON") from None
    return {"id": name_id, "type": "function", "function": {"name": name, "arguments": parsed}}


def template_tools(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The tools as plain objects."""
    return [tool.model_dump(exclude_none=True) for tool in tools]


async def chat_prompt(
    model: ServedModel,
    messages: Sequence[Message],
    tools: Sequence[Tool],
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    add_special_tokens: bool = False,
    names: Mapping[str, Any] | None = None,
    source: str | None = None,
) -> list[int]:
    """The token ids of a conversation. The template, the model's or that of a `source`, writes its
    special tokens itself.
    """
    template = model.tokenizer.template
    if source is not None:
        template = _own_template(model, source)
    if template is None:
        raise invalid("messages", f"the model {model.name!r} has no chat template: give a prompt")
    plain = template_messages(messages)
    reserved = {"messages", "tools", "add_generation_prompt"}.intersection(names or {})
    if reserved:
        raise invalid("chat_template_kwargs", f"{sorted(reserved)} have fields of their own")
    try:
        text = template.render(
            plain,
            tools=template_tools(tools) if tools else None,
            add_generation_prompt=add_generation_prompt and not continue_final_message,
            **(names or {}),
        )
    except RequestError as error:
        raise refused(error) from error
    except Exception as error:  # a template is a program: what it raises is about its messages
        raise invalid("messages", f"the chat template fails on them: {error}") from error
    if continue_final_message:
        text = _up_to(text, plain[-1]["content"])
    return await encode(model, text, add_special_tokens=add_special_tokens)


def _own_template(model: ServedModel, source: str) -> ChatTemplate:
    try:
        return ChatTemplate(source, model.tokenizer.special_tokens)
    except RequestError as error:
        raise invalid("chat_template", str(error)) from error


def _up_to(text: str, final: str) -> str:
    """The text without what the template writes after the last message."""
    end = text.rfind(final.strip()) if final.strip() else -1
    if end < 0:
        raise invalid("continue_final_message", "the template does not show the last message")
    return text[: end + len(final.strip())]
