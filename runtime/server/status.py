"""Endpoints for operators, and the page."""

import time
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from ..engine import EngineStats
from .errors import ApiError, invalid
from .metrics import EngineCollector, usage
from .service import Service
from .streams import finite

_PAGE = {
    "": ("index.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
}


def routes(service: Service, version: str) -> APIRouter:
    """The endpoints over a service."""
    router = APIRouter(tags=["operation"])
    for add in (_add_models, _add_states, _add_checks, _add_sleep, _add_counts):
        add(router, service)

    _add_facts(router, service, version)

    @router.get("/version")
    async def version_of() -> dict[str, str]:
        """The version of the server."""
        return {"version": version}

    @router.get("/", include_in_schema=False)
    @router.get("/page.css", include_in_schema=False)
    @router.get("/page.js", include_in_schema=False)
    async def page(request: Request) -> Response:
        """A playground and a live view of the engines."""
        name, kind = _PAGE[request.url.path.removeprefix("/")]
        body = files(__package__ or "").joinpath("page", name).read_bytes()
        return Response(body, media_type=kind, headers={"cache-control": "no-cache"})

    return router


def _add_models(router: APIRouter, service: Service) -> None:
    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The models served here."""
        return {"object": "list", "data": [model.to_json() for model in service.models]}

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """One model."""
        return service.models[name].to_json()

    @router.get("/plan")
    async def plan(model: str | None = None) -> JSONResponse:
        """The memory of a model, to the byte."""
        return JSONResponse(dict(service.models[model].plan))


def _add_facts(router: APIRouter, service: Service, version: str) -> None:
    @router.get("/server_info")
    async def server_info() -> dict[str, Any]:
        """The version, the settings and how each engine was made; keys are not told."""
        settings = asdict(service.settings)
        settings["api_keys"] = len(service.settings.api_keys)
        models = {model.name: dict(model.config) for model in service.models}
        seconds = ("request_seconds", "drain_seconds")
        settings |= {name: finite(settings[name]) for name in seconds}
        return {"version": version, "settings": settings, "models": models}

    @router.get("/tokenizer_info")
    async def tokenizer_info(model: str | None = None) -> dict[str, Any]:
        """A model's tokenizer: its size, its special tokens and its chat template."""
        text = service.models[model].tokenizer
        return {
            "vocab_size": text.tokenizer.get_vocab_size(),
            "special_tokens": text.special_tokens,
            "added_tokens": text.added,
            "chat_template": text.template and text.template.source,
            # As tokenizer_config.json has them, for clients that look for them there.
            **text.special_tokens,
        }


def _add_states(router: APIRouter, service: Service) -> None:
    @router.get("/health")
    async def health() -> Response:
        """200 while every engine can serve."""
        if not service.is_alive:
            raise ApiError(503, "an engine has stopped", code="engine_stopped")
        return Response()

    @router.get("/ready")
    async def ready() -> Response:
        """200 while requests are taken."""
        if not service.is_ready:
            raise ApiError(503, "requests are not taken", code="not_ready")
        return Response()

    @router.get("/ping")
    @router.post("/ping", include_in_schema=False)
    async def ping() -> Response:
        """200 while the server answers at all."""
        return Response()

    @router.get("/load")
    async def load() -> dict[str, int]:
        """How many requests are unfinished."""
        return {"server_load": service.unfinished}


def _add_checks(router: APIRouter, service: Service) -> None:
    @router.get("/check")
    async def check() -> dict[str, str]:
        """Account for every block, sequence and request; 500 with both sides where they differ."""
        for front in service.models.fronts.values():
            await front.check()
        return {"status": "every block, sequence and request is accounted for"}

    @router.post("/reset_prefix_cache")
    async def reset(model: str | None = None) -> Response:
        """Forget the prefixes of one model, or of all where none is named."""
        chosen = [service.models[model]] if model is not None else list(service.models)
        for each in chosen:
            if each.front is not None:
                await each.front.forget_prefixes()
        return Response()


def _add_sleep(router: APIRouter, service: Service) -> None:
    @router.post("/sleep")
    async def sleep(level: int = 1) -> Response:
        """Take no requests and give the memory of the caches back; weights stay, so that 1 is the
        only level.
        """
        if level != 1:
            raise invalid("level", f"given {level}, wanted 1: weights are mapped files and stay")
        await service.sleep()
        return Response()

    @router.post("/wake_up")
    async def wake_up() -> Response:
        """Take requests again."""
        service.asleep = False
        return Response()

    @router.get("/is_sleeping")
    async def is_sleeping() -> dict[str, bool]:
        """Whether the server sleeps."""
        return {"is_sleeping": service.asleep}


def _add_counts(router: APIRouter, service: Service) -> None:
    @router.get("/kernels")
    async def kernels(model: str | None = None) -> dict[str, Any]:
        """The kernels of a step that ran a moment ago, and their shares of the roofline; asking
        has the next step timed. `step` is null where no step ran since somebody asked first.
        """
        each = service.models[model]
        return {"model": each.name, "step": each.kernels()}

    @router.get("/stats")
    async def stats() -> dict[str, Any]:
        """What each engine holds now and how fast it was in the last minute."""
        return {"ready": service.is_ready, "models": await _live(service)}

    @router.get("/metrics")
    async def metrics() -> Response:
        """Metrics in Prometheus' text form."""
        return PlainTextResponse(await metrics_text(service), media_type=CONTENT_TYPE_LATEST)


async def _stats(service: Service) -> dict[str, EngineStats]:
    alive = {name: front for name, front in service.models.fronts.items() if front.is_alive}
    return {name: await front.stats() for name, front in alive.items()}


async def metrics_text(service: Service) -> bytes:
    """All metrics, the engines' counts read now."""
    now = CollectorRegistry()
    configs = {model.name: model.config for model in service.models if model.config}
    startups = {m.name: m.startup_seconds for m in service.models if m.startup_seconds is not None}
    stats = await _stats(service)
    now.register(
        EngineCollector(stats, configs, startups, ready=service.is_ready, asleep=service.asleep)
    )
    return generate_latest(service.metrics.registry) + generate_latest(now)


async def _live(service: Service) -> dict[str, dict[str, Any]]:
    now = time.monotonic()
    return {
        name: {
            "running": stats.running,
            "waiting": stats.waiting,
            "kv_blocks_used": stats.blocks_used,
            "kv_blocks_cached": stats.blocks_cached,
            "kv_blocks_free": stats.blocks_free,
            "kv_cache_usage": usage(stats),
            "steps": stats.steps,
            "preemptions": stats.preemptions,
            "swaps": stats.swaps,
            "prefix_cache_queries": stats.prefix_queries,
            "prefix_cache_hits": stats.prefix_hits,
            "prefix_cache_evictions": stats.evictions,
            **service.models[name].live.summary(now),
        }
        for name, stats in (await _stats(service)).items()
    }
