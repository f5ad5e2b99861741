"""/v1/responses. What a response was stays here for a while, so that others can continue it."""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from ..sampling import SamplingParams
from .chat import forced_calls, offered_tools
from .conversation import chat_prompt
from .errors import ApiError, failed, invalid, unsupported
from .fields import Generation, Message, Tool
from .generation import Run, fitted, new_id
from .items import (
    InputBody,
    Item,
    ResponseBody,
    input_items,
    messages_of,
    nested_choice,
    nested_tools,
)
from .kept import Kept
from .models import ServedModel
from .parameters import format_constraint, sampling_params, structured
from .replies import reply_reader
from .response_form import ResponseForm, asked_of
from .service import Service
from .streams import finite
from .tools import shown_marks


class _Asked(NamedTuple):
    """What a body asks: the conversation as items, its tools and its prompt."""

    items: tuple[Item, ...]
    tools: tuple[Tool, ...]
    prompt: list[int]


def routes(service: Service) -> APIRouter:
    """The endpoints over a service."""
    router = APIRouter(tags=["generation"])

    @router.post("/v1/responses")
    async def respond(body: ResponseBody, request: Request) -> Response:
        """Answer an input."""
        model = service.model(body.model)
        store = _stores(service, body)
        asked = await _asked(service, model, body, request.state.key)
        generation = Generation(
            model=body.model,
            temperature=body.temperature,
            top_p=body.top_p,
            stream=body.stream,
            user=body.user,
            priority=body.priority,
            cache_salt=body.cache_salt,
            request_id=body.request_id or new_id("resp_"),
        )
        split = service.settings.thoughts
        extra = _extra(body, generation, asked.tools)
        forces = "structured_outputs" in extra and nested_choice(body) is not None
        read = asked.tools if service.settings.calls or forces else ()
        extra |= shown_marks(model, read, thoughts=split)
        params = sampling_params(generation, model.sampling, **extra)
        kept = _kept(body, asked, str(generation.request_id), request.state.key)

        def keep(whole: dict[str, Any]) -> None:
            kept.body = whole
            if store:
                service.kept.put(kept)

        values = _sampling(params)
        reader = reply_reader(
            model, asked.prompt, read, thoughts=split, parallel=body.parallel_tool_calls
        )
        said = asked_of(body, store=store, sampling=values)
        form = ResponseForm(body, model, reader, said, keep)
        if body.background:
            work = _Work(Run(model, params), form, kept)
            options = service.options(request, generation)
            return await work.start(service, asked.prompt, options)
        return await service.answer(request, generation, "resp_", [asked.prompt], params, form)

    @router.post("/v1/responses/input_tokens")
    async def count(body: InputBody, request: Request) -> dict[str, Any]:
        """How many tokens an input has."""
        model = service.model(body.model)
        asked = await _asked(service, model, body, request.state.key)
        return {"object": "response.input_tokens", "input_tokens": len(asked.prompt)}

    _add_kept(router, service)
    return router


def _add_kept(router: APIRouter, service: Service) -> None:
    @router.get("/v1/responses/{name}")
    async def read(name: str, request: Request) -> JSONResponse:
        """A response that was kept, or as far as it has come."""
        if request.query_params.get("stream") == "true":
            raise unsupported("stream", "a response that was kept is read whole")
        return JSONResponse(service.kept.find(name, request.state.key).body)

    @router.delete("/v1/responses/{name}")
    async def remove(name: str, request: Request) -> dict[str, Any]:
        """Forget a response."""
        service.kept.remove(name, request.state.key)
        return {"id": name, "object": "response", "deleted": True}

    @router.post("/v1/responses/{name}/cancel")
    async def cancel(name: str, request: Request) -> JSONResponse:
        """End a response that runs in the background."""
        kept = service.kept.find(name, request.state.key)
        if not kept.body["background"]:
            raise invalid(None, "only what runs in the background can be cancelled")
        if not kept.is_over:
            kept.body = kept.body | {"status": "cancelled"}
            kept.close()
        return JSONResponse(kept.body)

    @router.get("/v1/responses/{name}/input_items")
    async def list_items(
        name: str, request: Request, limit: int = 20, order: str = "desc", after: str | None = None
    ) -> dict[str, Any]:
        """The items that a response answered, the last one first."""
        if not 1 <= limit <= 100 or order not in ("asc", "desc"):
            raise invalid("limit", "wanted 1 to 100, order asc or desc")
        kept = service.kept.find(name, request.state.key)
        items = list(kept.given if order == "asc" else reversed(kept.given))
        names = [item["id"] for item in items]
        begin = names.index(after) + 1 if after in names else 0
        shown = items[begin : begin + limit]
        return {
            "object": "list",
            "data": shown,
            "first_id": shown[0]["id"] if shown else None,
            "last_id": shown[-1]["id"] if shown else None,
            "has_more": begin + limit < len(items),
        }


def _stores(service: Service, body: ResponseBody) -> bool:
    room = service.settings.kept_responses > 0
    if body.store and not room:
        raise unsupported("store", "this server keeps nothing")
    store = room if body.store is None else body.store
    if body.background and not store:
        raise invalid("background", "needs store: its response is read later")
    if body.background and body.stream:
        raise unsupported("stream", "not in the background")
    return store


async def _asked(
    service: Service, model: ServedModel, body: InputBody, owner: int | None
) -> _Asked:
    before: tuple[Item, ...] = ()
    if body.previous_response_id is not None:
        kept = service.kept.find(body.previous_response_id, owner, "previous_response_id")
        if not kept.is_over:
            raise invalid("previous_response_id", "this response has not ended yet")
        before = kept.conversation()
    items = (*before, *service.kept.resolved(input_items(body), owner))
    messages = messages_of(items)
    if body.instructions:
        messages.insert(0, Message(role="system", content=body.instructions))
    if not messages:
        raise invalid("input", "there is nothing to answer", "missing_required_parameter")
    tools = offered_tools(nested_tools(body), nested_choice(body))
    names = {"reasoning_effort": body.reasoning.effort} if body.reasoning else {}
    names = {name: value for name, value in names.items() if value is not None}
    while True:
        prompt = await chat_prompt(model, messages, tools, names=names)
        oldest = _droppable(messages)
        fits = len(prompt) < model.max_context
        if fits or body.truncation != "auto" or oldest is None:
            return _Asked(items, tools, fitted(model, prompt, None, "input"))
        del messages[oldest]


def _droppable(messages: Sequence[Message]) -> int | None:
    """The oldest message that may go where a conversation is truncated: none of the system's, and
    not the last one.
    """
    found = (n for n, m in enumerate(messages[:-1]) if m.role not in ("system", "developer"))
    return next(found, None)


def _extra(body: ResponseBody, generation: Generation, tools: Sequence[Tool]) -> dict[str, Any]:
    extra: dict[str, Any] = {"max_tokens": body.max_output_tokens}
    if "message.output_text.logprobs" in (body.include or ()):
        extra["logprobs"] = body.top_logprobs or 0
    elif body.top_logprobs:
        raise invalid("top_logprobs", "needs include: message.output_text.logprobs")
    constraint = format_constraint(body.text.format if body.text else None)
    extra |= structured(generation, constraint, "text.format")
    parallel = body.parallel_tool_calls and "parallel_tool_calls" in body.model_fields_set
    calls = forced_calls(tools, nested_choice(body), parallel=parallel)
    if calls is not None:
        if constraint is not None:
            raise invalid("text.format", "not together with a forced tool call")
        extra |= structured(generation, {"json": calls}, "tool_choice")
    return extra


def _sampling(params: SamplingParams) -> dict[str, Any]:
    return {"temperature": params.temperature, "top_p": params.top_p}


def _kept(body: ResponseBody, asked: _Asked, name: str, owner: int | None) -> Kept:
    given = []
    for item in input_items(body):
        shown = item.model_dump(exclude_none=True)
        if item.type == "message" and isinstance(item.content, str):
            kind = "output_text" if item.role == "assistant" else "input_text"
            shown["content"] = [{"type": kind, "text": item.content}]
        prefix = {"message": "msg_", "reasoning": "rs_"}.get(item.type, "fc_")
        given.append({"id": new_id(prefix), "status": "completed"} | shown)
    return Kept(name, owner, asked.items, tuple(given), {"status": "in_progress"})


class _Work:
    """A response in the background: it is queued at once, and read when it is there."""

    def __init__(self, run: Run, form: ResponseForm, kept: Kept) -> None:
        self._run, self._form, self._kept = run, form, kept
        form.id = kept.id

    async def start(
        self, service: Service, prompt: list[int], options: dict[str, Any]
    ) -> JSONResponse:
        """Queue it, and answer with what there is."""
        await self._run.submit(self._kept.id, [prompt], options)
        self._kept.body, self._kept.close = self._form.frame("queued"), self._close
        service.kept.put(self._kept)
        seconds = finite(service.settings.request_seconds)
        self._kept.task = asyncio.create_task(self._finish(seconds))
        return JSONResponse(self._kept.body)

    def _close(self) -> None:
        assert self._kept.task is not None, "it was started"
        self._kept.task.cancel()

    async def _finish(self, seconds: float | None) -> None:
        self._kept.body = self._kept.body | {"status": "in_progress"}
        try:
            async with asyncio.timeout(seconds):
                await self._run.finish()
            self._form.whole(self._run)
        except TimeoutError:
            self._form.fault(ApiError(504, "the response took too long", code="timeout"))
        except ApiError as error:
            self._form.fault(error)
        except Exception as error:
            self._form.fault(failed(error))
        finally:
            self._run.close()
