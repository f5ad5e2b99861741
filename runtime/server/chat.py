"""/v1/chat/completions."""

import time
from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring
from typing import Any

from fastapi import APIRouter, Request, Response

from ..engine import Delta
from .beams import BeamRun, beam_params
from .conversation import chat_prompt
from .errors import invalid
from .fields import ChatBody, NamedTool, Tool, ToolSubset
from .generation import Choice, Run, chat_logprobs, fitted, prompt_logprobs
from .models import ServedModel
from .parameters import format_constraint, sampling_params, structured
from .replies import ReplyReader, reply_reader
from .service import Form, Service
from .streams import Events, event
from .tools import call_schema, shown_marks


def routes(service: Service) -> APIRouter:
    """The endpoint over a service."""
    router = APIRouter(tags=["generation"])

    @router.post("/v1/chat/completions")
    async def chat(body: ChatBody, request: Request) -> Response:
        """Answer a conversation."""
        model = service.model(body.model)
        tools = offered_tools(body.tools, body.tool_choice)
        split = service.settings.thoughts
        template = service.own_template(body.chat_template)
        read = tools if service.settings.calls or _calls(body, tools) is not None else ()
        extra = _extra(body, tools) | shown_marks(model, read, thoughts=split)
        params = beam_params(body, extra) or sampling_params(body, model.sampling, **extra)
        names = dict(body.chat_template_kwargs or {})
        names |= {"reasoning_effort": body.reasoning_effort} if body.reasoning_effort else {}
        names |= {"documents": body.documents} if body.documents is not None else {}
        tokens = await chat_prompt(
            model,
            body.messages,
            tools,
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
            add_special_tokens=body.add_special_tokens,
            names=names,
            source=template,
        )
        prompt = fitted(model, tokens, body.truncate_prompt_tokens, "messages")
        form = ChatForm(body, model, read, prompt, thoughts=split)
        if body.structured_outputs is None:
            form.constraint = "response_format" if body.response_format else "tools"
        return await service.answer(request, body, "chatcmpl-", [prompt], params, form)

    return router


_GAP = "\x7f"  # stands where a chunk's text goes; JSON leaves it as it is
ToolChoice = str | NamedTool | ToolSubset | None


def offered_tools(tools: Sequence[Tool] | None, choice: ToolChoice) -> tuple[Tool, ...]:
    """The tools that the model sees and may call."""
    tools = tuple(tools or ())
    if isinstance(choice, NamedTool):
        return _named(tools, [choice])
    if isinstance(choice, ToolSubset):
        return _named(tools, choice.allowed_tools.tools)
    if choice in ("auto", "required") and not tools:
        raise invalid("tool_choice", f"{choice!r} needs tools")
    return () if choice == "none" else tools


def _named(tools: Sequence[Tool], wanted: Sequence[NamedTool]) -> tuple[Tool, ...]:
    known = {t.function.name for t in tools}
    names = [each.function.name for each in wanted]
    if missing := [name for name in names if name not in known]:
        raise invalid("tool_choice", f"no tool is named {missing[0]!r}")
    return tuple(t for t in tools if t.function.name in names)


def forced_calls(
    tools: Sequence[Tool], choice: ToolChoice, *, parallel: bool
) -> dict[str, Any] | None:
    """The schema of what a model must write that must call: several tools only where it may call
    them in parallel. None where it may answer.
    """
    if isinstance(choice, NamedTool):
        return call_schema(tools)
    mode = choice.allowed_tools.mode if isinstance(choice, ToolSubset) else choice
    return call_schema(tools, several=parallel) if mode == "required" else None


def _calls(body: ChatBody, tools: Sequence[Tool]) -> dict[str, Any] | None:
    # Small models that may call twice do so until they run out of tokens: only where it is said.
    parallel = body.parallel_tool_calls and "parallel_tool_calls" in body.model_fields_set
    return forced_calls(tools, body.tool_choice, parallel=parallel)


def _extra(body: ChatBody, tools: Sequence[Tool]) -> dict[str, Any]:
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise invalid("max_tokens", "not together with max_completion_tokens")
    if body.top_logprobs and not body.logprobs:
        raise invalid("top_logprobs", "needs logprobs")
    asked = body.add_generation_prompt and "add_generation_prompt" in body.model_fields_set
    if asked and body.continue_final_message:
        raise invalid("continue_final_message", "not together with add_generation_prompt")
    limit = body.max_completion_tokens
    extra: dict[str, Any] = {"max_tokens": body.max_tokens if limit is None else limit}
    extra["logprobs"] = (body.top_logprobs or 0) if body.logprobs else None
    constraint = format_constraint(body.response_format)
    extra |= structured(body, constraint, "response_format")
    calls = _calls(body, tools)
    if calls is not None:
        if constraint is not None:
            raise invalid("response_format", "not together with a forced tool call")
        extra |= structured(body, {"json": calls}, "tool_choice")
    return extra


class ChatForm(Form):
    """The form of chat completions; every choice has a reader of its thoughts, and with tools one
    of its calls.
    """

    def __init__(
        self,
        body: ChatBody,
        model: ServedModel,
        tools: Sequence[Tool],
        prompt: list[int],
        *,
        thoughts: bool,
    ) -> None:
        self.body, self.model, self.prompt = body, model, prompt
        self.tools, self.thoughts = tools, thoughts
        self.created = int(time.time())
        last = body.messages[-1]
        self._echo = last.plain_content if body.echo and last.role == "assistant" else ""
        self._plain: dict[int, tuple[str, str]] = {}

    def _reader(self) -> ReplyReader:
        parallel = self.body.parallel_tool_calls
        return reply_reader(
            self.model, self.prompt, self.tools, thoughts=self.thoughts, parallel=parallel
        )

    def whole(self, run: Run | BeamRun) -> dict[str, Any]:
        """The answer to a request that does not stream."""
        choices = [self._whole_choice(c) | self._ids(c.tokens) for c in run.choices.values()]
        whole = self._frame(choices, "chat.completion") | {"usage": run.usage()}
        if self.body.prompt_logprobs is not None:
            first = next(iter(run.choices.values()))
            as_ids = self.body.return_tokens_as_token_ids
            whole["prompt_logprobs"] = prompt_logprobs(self.model, first, as_ids=as_ids)
        return whole | ({"prompt_token_ids": self.prompt} if self.body.return_token_ids else {})

    def _ids(self, tokens: Sequence[int]) -> dict[str, Any]:
        """The token ids of a piece where they were asked for."""
        return {"token_ids": list(tokens)} if self.body.return_token_ids else {}

    def _whole_choice(self, choice: Choice) -> dict[str, Any]:
        reader = self._reader()
        thought, content = reader.push(choice.text, last=True)
        reader.count_thoughts(choice)
        content = self._echo + content
        calls = reader.calls
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        message |= self._thought(thought)
        if calls:
            message["content"] = content.strip() or None
            message["tool_calls"] = [call.to_json() for call in calls]
        logprobs = self._logprobs(choice.tokens, choice.logprobs)
        return self._choice(choice, {"message": message}, logprobs, called=bool(calls))

    async def events(self, run: Run) -> Events:
        """The role, then a chunk for each delta that says something, then the usage if asked."""
        readers = {c.index: self._reader() for c in run.choices.values()}
        for choice in run.choices.values():
            yield self._chunk(run, choice, {"role": "assistant", "content": self._echo}, None)
        async for choice, delta in run:
            reader = readers[choice.index]
            message, called = self._message(delta, reader)
            reader.count_thoughts(choice)
            if self._is_plain(message, delta):
                yield self._plain_chunk(choice, message["content"])
                continue
            logprobs = self._logprobs(delta.token_ids, delta.logprobs or ())
            ids = self._ids(delta.token_ids)
            if message or logprobs or delta.finish_reason or ids:
                yield self._chunk(run, choice, message, logprobs, called=called, ids=ids)
        if self.body.stream_options and self.body.stream_options.include_usage:
            yield event(self._frame([], "chat.completion.chunk") | {"usage": run.usage()})

    def _is_plain(self, message: Mapping[str, Any], delta: Delta) -> bool:
        """Whether a chunk says nothing but text, as most do."""
        body = self.body
        if body.stream_options or body.logprobs or body.return_token_ids:
            return False
        return delta.finish_reason is None and message.keys() == {"content"}

    def _plain_chunk(self, choice: Choice, text: str) -> str:
        """A chunk that says nothing but text: what is the same in all is written once."""
        if choice.index not in self._plain:
            part = self._choice(choice, {"delta": {"content": _GAP}}, None, called=False)
            begin, _, end = event(self._frame([part], "chat.completion.chunk")).partition(_GAP)
            self._plain[choice.index] = (begin[:-1], end[1:])
        begin, end = self._plain[choice.index]
        return begin + encode_basestring(text) + end

    def _message(self, delta: Delta, reader: ReplyReader) -> tuple[dict[str, Any], bool]:
        """What a delta adds to the message, and whether the choice has called a tool by now."""
        thought, content = reader.push(delta.text, last=delta.finish_reason is not None)
        message: dict[str, Any] = {"content": content} if content else {}
        message |= self._thought(thought)
        pieces = [p for p in reader.grown() if p.begins or p.arguments]
        if pieces:
            message["tool_calls"] = [piece.to_json() for piece in pieces]
        return message, bool(reader.calls)

    def _thought(self, thought: str) -> dict[str, Any]:
        return {"reasoning_content": thought} if thought and self.body.include_reasoning else {}

    def _logprobs(self, tokens: Sequence[int], found: Sequence[Any]) -> dict[str, Any] | None:
        if not self.body.logprobs or not tokens:
            return None
        top, as_ids = self.body.top_logprobs or 0, self.body.return_tokens_as_token_ids
        return chat_logprobs(self.model, tokens, found, top, as_ids=as_ids)

    def _chunk(
        self,
        run: Run,
        choice: Choice,
        message: dict[str, Any],
        logprobs: dict[str, Any] | None,
        *,
        called: bool = False,
        ids: Mapping[str, Any] | None = None,
    ) -> str:
        part = self._choice(choice, {"delta": message}, logprobs, called=called) | dict(ids or {})
        chunk = self._frame([part], "chat.completion.chunk")
        options = self.body.stream_options
        if options and (options.include_usage or options.continuous_usage_stats):
            chunk["usage"] = run.usage() if options.continuous_usage_stats else None
        return event(chunk)

    def _choice(
        self,
        choice: Choice,
        message: dict[str, Any],
        logprobs: dict[str, Any] | None,
        *,
        called: bool,
    ) -> dict[str, Any]:
        reason = choice.finish_reason
        return {
            "index": choice.index,
            **message,
            "logprobs": logprobs,
            "finish_reason": "tool_calls" if called and reason == "stop" else reason,
            "stop_reason": choice.stop_reason,
        }

    def _frame(self, choices: list[dict[str, Any]], kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model.name,
            "choices": choices,
            "system_fingerprint": self.model.fingerprint,
            # Said where it was asked for; there is one tier.
            **({"service_tier": "default"} if self.body.service_tier else {}),
        }
