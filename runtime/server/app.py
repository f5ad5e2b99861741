"""The application: endpoints, errors and the life of the engines' threads."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from . import chat, completions, messages, pooling, responses, similarity, status, tokens
from .errors import ApiError, from_validation
from .middleware import Gate
from .service import Service


def build_app(service: Service, version: str) -> ASGIApp:
    """The ASGI application of a service."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        for front in service.models.fronts.values():
            front.start()
        yield
        service.draining = True
        for front in service.models.fronts.values():
            front.close()

    app = FastAPI(title="Ferrule", version=version, lifespan=life, docs_url=None, redoc_url=None)
    for part in (completions, chat, responses, messages, tokens, pooling, similarity):
        app.include_router(part.routes(service))
    app.include_router(status.routes(service, version))
    _answer_errors(app)
    gate = Gate(app, service.settings, logging.getLogger("ferrule.server"))
    if not service.settings.origins:
        return gate
    # Outside the gate: what a browser asks first comes without a key.
    return CORSMiddleware(
        gate,
        allow_origins=service.settings.origins,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "retry-after"],
    )


def _answer_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def of_ours(request: Request, error: ApiError) -> Response:
        return _response(request, error)

    @app.exception_handler(RequestValidationError)
    async def of_bodies(request: Request, error: RequestValidationError) -> Response:
        return _response(request, _of_type(request) or from_validation(error.errors()))

    @app.exception_handler(HTTPException)
    async def of_routes(request: Request, error: HTTPException) -> Response:
        if isinstance(error.__cause__, ApiError):  # raised while the body was read
            return _response(request, error.__cause__)
        named = {400: "invalid_json", 404: "unknown_url", 405: "method_not_allowed"}
        why = str(error.detail)
        if error.status_code == 400 and error.__cause__ is not None:
            why = f"the body cannot be read: {error.__cause__}"
        answer = _response(
            request, ApiError(error.status_code, why, code=named.get(error.status_code))
        )
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def of_nobody(request: Request, error: Exception) -> Response:
        message = f"{type(error).__name__}: {error}"
        return _response(request, ApiError(500, message, code="internal_error"))


def _of_type(request: Request) -> ApiError | None:
    """The error of a body that does not say that it is JSON. It is not read: a page of another
    site may send such bodies without asking, JSON it may not.
    """
    given = request.headers.get("content-type", "")
    kind = given.partition(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        return None
    message = f"content-type: given {given or 'none'}, wanted application/json"
    return ApiError(415, message, code="unsupported_media_type")


def _response(request: Request, error: ApiError) -> JSONResponse:
    return JSONResponse(
        error.body_at(request.url.path), status_code=error.status, headers=error.headers
    )
