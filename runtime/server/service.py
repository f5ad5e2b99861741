"""What every endpoint needs: the models, the settings and whether requests are taken."""

from collections.abc import Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from ..beam import BeamSearchParams
from ..errors import RequestError
from ..sampling import SamplingParams
from .beams import BeamRun
from .errors import ApiError, unsupported
from .fields import Generation, Pooled
from .generation import Run, new_id
from .kept import KeptResponses
from .metrics import ServerMetrics
from .models import Models, ServedModel
from .settings import Settings
from .streams import Events, EventStream, event, guarded, until_gone
from .traces import HEADERS


class Service:
    """The state of one server. While it drains, what runs goes on and nothing new is taken."""

    def __init__(self, models: Models, settings: Settings, metrics: ServerMetrics) -> None:
        self.models, self.settings, self.metrics = models, settings, metrics
        self.draining = self.asleep = False
        self.kept = KeptResponses(settings.kept_responses)

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken."""
        return not (self.draining or self.asleep) and self.is_alive

    @property
    def is_alive(self) -> bool:
        """Whether every engine can serve."""
        return all(front.is_alive for front in self.models.fronts.values())

    @property
    def unfinished(self) -> int:
        """Requests that engines still work on."""
        return sum(front.requests for front in self.models.fronts.values())

    def model(self, name: str | None) -> ServedModel:
        """The model that a body names, while requests are taken."""
        if self.draining:
            raise ApiError(503, "the server is shutting down", code="draining", retry_after=5)
        if self.asleep:
            raise ApiError(503, "the server sleeps: POST /wake_up", code="asleep")
        return self.models[name]

    def own_template(self, source: str | None) -> str | None:
        """The chat template that a request brings; an error where requests may bring none."""
        if source is not None and not self.settings.own_templates:
            raise unsupported("chat_template", "start with --trust-request-chat-template")
        return source

    async def sleep(self) -> None:
        """Take no requests, and give the memory of every cache back, until `asleep` is False again;
        raises where requests run.
        """
        if self.unfinished:
            message = f"{self.unfinished} requests run: end them or wait"
            raise ApiError(409, message, code="requests_running")
        self.asleep = True
        try:
            for front in self.models.fronts.values():
                await front.sleep()
        except RequestError as error:
            self.asleep = False
            raise ApiError(400, str(error), code="unsupported_model") from error
        except BaseException:
            self.asleep = False
            raise

    async def answer(
        self,
        request: Request,
        body: Generation,
        prefix: str,
        prompts: Sequence[list[int]],
        params: SamplingParams | BeamSearchParams,
        form: "Form",
    ) -> Response:
        """Run prompts and answer in the endpoint's form, whole or as a stream."""
        if body.store:
            raise unsupported("store", "chats and completions are not kept")
        if body.stream and body.prompt_logprobs is not None:
            raise unsupported("prompt_logprobs", "not in a stream")
        model = self.models[body.model]
        run = Run(model, params) if isinstance(params, SamplingParams) else BeamRun(model, params)
        form.id = body.request_id or new_id(prefix)
        request.state.summary = {"model": run.model.name, "request_id": form.id}
        seconds = self.settings.request_seconds

        def close() -> None:
            run.close()
            request.state.summary.update(_summary(run))

        try:
            await run.submit(form.id, prompts, self.options(request, body))
            if body.stream and isinstance(run, Run):
                events = guarded(form.events(run), form.fault, ends=form.ends)
                return EventStream(events, seconds, close, form.fault, ends=form.ends)
            await until_gone(run.finish(), request, seconds)
            close()
            return JSONResponse(form.whole(run))
        except ApiError as error:
            close()
            error.at("structured_outputs", form.constraint)
            raise
        except BaseException:
            close()
            raise

    def options(self, request: Request, body: Generation | Pooled) -> dict[str, Any]:
        """What the engine is told beside the sampling parameters.

        Where the server has several keys each of them is a client: who shares tokens fairly does
        not go by a name that anybody may give himself.
        """
        client = body.user
        if len(self.settings.api_keys) > 1:
            client = f"key-{request.state.key}"
        options = {"client": client, "priority": body.priority, "cache_salt": body.cache_salt}
        trace = {name: request.headers[name] for name in HEADERS if name in request.headers}
        options |= {"trace": trace}
        return {name: value for name, value in options.items() if value}


class Form:
    """How an endpoint writes what was generated; `ends` says that its streams end with [DONE],
    `constraint` is the field that constrains the output.
    """

    id: str
    ends = True
    constraint = "structured_outputs"

    def events(self, run: Run) -> Events:
        """The events of a stream."""
        raise NotImplementedError

    def whole(self, run: Run | BeamRun) -> dict[str, Any]:
        """The body of an answer that is whole."""
        raise NotImplementedError

    def fault(self, error: ApiError) -> str:
        """The event of an error in the middle of a stream, as the status is long sent."""
        return event(error.body)


def _summary(run: Run | BeamRun) -> dict[str, Any]:
    usage = run.usage()
    reasons = [c.finish_reason or "abort" for c in run.choices.values()]
    return {
        "prompt_tokens": usage["prompt_tokens"],
        "completion_tokens": usage["completion_tokens"],
        "finish_reason": ",".join(reasons),
    }
