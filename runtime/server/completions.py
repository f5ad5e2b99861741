"""/v1/completions."""

import time
from collections.abc import Sequence
from typing import Any, cast

from fastapi import APIRouter, Request, Response

from ..engine import Delta, TokenLogprobs
from .beams import BeamRun, beam_params
from .errors import invalid, unsupported
from .fields import CompletionBody
from .generation import (
    Choice,
    Run,
    completion_logprobs,
    encode,
    fitted,
    prompt_logprobs,
    token_text,
)
from .infill import Infill, infill_of, infill_prompt
from .models import ServedModel
from .parameters import format_constraint, sampling_params, structured
from .service import Form, Service
from .streams import Events, event


def routes(service: Service) -> APIRouter:
    """The endpoint over a service."""
    router = APIRouter(tags=["generation"])

    @router.post("/v1/completions")
    async def complete(body: CompletionBody, request: Request) -> Response:
        """Continue one prompt or several."""
        model = service.model(body.model)
        marks = _marks(model, body)
        extra = _extra(body, marks)
        params = beam_params(body, extra) or sampling_params(body, model.sampling, **extra)
        prompts = await _prompts(model, body, marks)
        form = CompletionForm(body, model, prompts)
        if body.response_format is not None:
            form.constraint = "response_format"
        return await service.answer(request, body, "cmpl-", prompts, params, form)

    return router


def _marks(model: ServedModel, body: CompletionBody) -> Infill | None:
    """The marks of a gap where a suffix is given; an empty one asks for nothing."""
    if not body.suffix:
        return None
    for name in ("echo", "truncate_prompt_tokens", "use_beam_search"):
        if getattr(body, name):
            raise invalid(name, "not together with suffix")
    return infill_of(model)


def _extra(body: CompletionBody, marks: Infill | None) -> dict[str, Any]:
    """The sampling parameters that this endpoint names otherwise."""
    extra: dict[str, Any] = {"max_tokens": body.max_tokens, "logprobs": body.logprobs}
    if body.max_tokens == 0:
        if not body.echo or body.stream:
            raise invalid("max_tokens", "0 asks for nothing without echo, and does not stream")
        extra["max_tokens"] = 1
    if body.echo and body.logprobs is not None:
        extra["prompt_logprobs"] = body.logprobs
    if marks is not None and not body.ignore_eos:
        extra["stop_token_ids"] = [*(body.stop_token_ids or ()), *sorted(marks.ends)]
    if body.best_of is not None:
        extra |= _best_of(body, body.best_of)
    constraint = format_constraint(body.response_format)
    return extra | structured(body, constraint, "response_format")


def _best_of(body: CompletionBody, count: int) -> dict[str, Any]:
    if count < (body.n or 1):
        raise invalid("best_of", f"given {count}, wanted n={body.n} or more")
    if body.use_beam_search:
        raise unsupported("best_of", "beam search has a width, n")
    if count == (body.n or 1):
        return {}
    if body.stream:
        raise invalid("best_of", "more than n does not stream: the best are known at the end")
    return {"n": count, "logprobs": body.logprobs or 0}


async def _prompts(
    model: ServedModel, body: CompletionBody, marks: Infill | None
) -> list[list[int]]:
    given = body.prompt
    several = isinstance(given, list) and not (given and isinstance(given[0], int))
    each = cast("list[str | list[int]]", given if several else [given])
    if not each:
        raise invalid("prompt", "an empty list asks for nothing")
    found = []
    for prompt in each:
        add = body.add_special_tokens
        if marks is not None:
            suffix = body.suffix or ""
            prompt = await infill_prompt(model, marks, prompt, suffix, add_special_tokens=add)
        elif isinstance(prompt, str):
            prompt = await encode(model, prompt, add_special_tokens=add)
        found.append(fitted(model, prompt, body.truncate_prompt_tokens, "prompt"))
    return found


class CompletionForm(Form):
    """The form of text completions."""

    def __init__(
        self, body: CompletionBody, model: ServedModel, prompts: Sequence[list[int]]
    ) -> None:
        self.body, self.model, self.prompts = body, model, prompts
        self.created = int(time.time())

    def whole(self, run: Run | BeamRun) -> dict[str, Any]:
        """The answer to a request that does not stream."""
        if self.body.max_tokens == 0:
            for choice in run.choices.values():
                choice.drop_output()
        usage = run.usage()  # of all sequences, those that are not among the best, too
        chosen = _best(list(run.choices.values()), self.body)
        choices = [
            self._choice(c, self._echo(c) + c.text, self._all_logprobs(c), whole=True)
            | self._ids(c, c.tokens, first=True)
            for c in chosen
        ]
        return self._frame(choices) | {"usage": usage}

    async def events(self, run: Run) -> Events:
        """A chunk for each delta that says something, then the usage if it was asked for."""
        options = self.body.stream_options
        begun: set[int] = set()
        async for choice, delta in run:
            first = choice.index not in begun
            begun.add(choice.index)
            echo = self._echo(choice) if first else ""
            logprobs = self._delta_logprobs(choice, delta, first=first)
            asked = logprobs or self.body.return_token_ids
            if not (echo or delta.text or delta.finish_reason or asked):
                continue
            part = self._choice(choice, echo + delta.text, logprobs)
            part |= self._ids(choice, delta.token_ids, first=first)
            chunk = self._frame([part])
            if options and (options.include_usage or options.continuous_usage_stats):
                chunk["usage"] = run.usage() if options.continuous_usage_stats else None
            yield event(chunk)
        if options and options.include_usage:
            yield event(self._frame([]) | {"usage": run.usage()})

    def _frame(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model.name,
            "choices": choices,
            "system_fingerprint": self.model.fingerprint,
        }

    def _choice(
        self, choice: Choice, text: str, logprobs: dict[str, Any] | None, *, whole: bool = False
    ) -> dict[str, Any]:
        return {
            "index": choice.index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        } | ({"prompt_logprobs": self._prompt_logprobs(choice)} if whole else {})

    def _ids(self, choice: Choice, tokens: Sequence[int], *, first: bool) -> dict[str, Any]:
        """The token ids of a piece where they were asked for; the prompt's with the first."""
        if not self.body.return_token_ids:
            return {}
        prompt = self.prompts[choice.prompt] if first else None
        return {"token_ids": list(tokens), "prompt_token_ids": prompt}

    def _prompt_logprobs(self, choice: Choice) -> list[dict[str, Any] | None] | None:
        if self.body.prompt_logprobs is None:
            return None
        return prompt_logprobs(self.model, choice, as_ids=self.body.return_tokens_as_token_ids)

    def _echo(self, choice: Choice) -> str:
        if not self.body.echo:
            return ""
        return self.model.tokenizer.decode(self.prompts[choice.prompt])

    def _all_logprobs(self, choice: Choice) -> dict[str, Any] | None:
        return self._logprobs(choice, choice.tokens, choice.logprobs, 0, first=True)

    def _delta_logprobs(
        self, choice: Choice, delta: Delta, *, first: bool
    ) -> dict[str, Any] | None:
        if not delta.token_ids:
            return None
        before = choice.tokens[: len(choice.tokens) - len(delta.token_ids)]
        offset = sum(len(token_text(self.model, t)) for t in before)
        if not first:
            offset += len(self._echo(choice))
        return self._logprobs(choice, delta.token_ids, delta.logprobs or (), offset, first=first)

    def _logprobs(
        self,
        choice: Choice,
        tokens: Sequence[int],
        found: Sequence[TokenLogprobs],
        offset: int,
        *,
        first: bool,
    ) -> dict[str, Any] | None:
        top = self.body.logprobs
        if top is None:
            return None
        all_found: list[TokenLogprobs | None] = list(found)
        if first and self.body.echo:
            tokens = [*self.prompts[choice.prompt], *tokens]
            all_found = [*(choice.prompt_logprobs or ()), *found]
        as_ids = self.body.return_tokens_as_token_ids
        return completion_logprobs(self.model, tokens, all_found, top, offset, as_ids=as_ids)


def _best(choices: list[Choice], body: CompletionBody) -> list[Choice]:
    """Of each prompt the `n` likeliest sequences of `best_of`, by their log probability a token."""
    kept = body.n or 1
    if body.best_of is None or body.best_of == kept:
        return choices
    found: list[Choice] = []
    for prompt in sorted({c.prompt for c in choices}):
        own = [c for c in choices if c.prompt == prompt]
        best = sorted(own, key=lambda c: c.mean_logprob, reverse=True)[:kept]
        for place, choice in enumerate(best):
            choice.index = prompt * kept + place
        found += best
    return found
