"""/tokenize, /detokenize and /v1/embeddings."""

import asyncio
import base64
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from fastapi import APIRouter, Request

from .conversation import chat_prompt
from .errors import ApiError, invalid
from .fields import DetokenizeBody, EmbeddingBody, TokenizeBody
from .generation import encode, fitted, token_text
from .models import Embedder, ServedModel
from .service import Service
from .streams import until_gone

_AT_ONCE = 8  # prompts of a request that are embedded before others have their turn


def routes(service: Service) -> APIRouter:
    """The endpoints over a service."""
    router = APIRouter(tags=["tokens"])

    @router.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> dict[str, Any]:
        """The token ids of a text or of a conversation."""
        model = service.models[body.model]
        tokens = await _tokens(model, body)
        strings = [token_text(model, t) for t in tokens] if body.return_token_strs else None
        count, longest = len(tokens), model.max_context
        return {
            "count": count,
            "max_model_len": longest,
            "tokens": tokens,
            "token_strs": strings,
        }

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> dict[str, Any]:
        """The text of token ids."""
        model = service.models[body.model]
        for token in body.tokens:
            if not 0 <= token < model.vocabulary:
                raise invalid("tokens", f"given {token}, wanted 0 to {model.vocabulary - 1}")
        skip = body.skip_special_tokens
        return {"prompt": model.tokenizer.decode(body.tokens, skip_special_tokens=skip)}

    @router.post("/v1/embeddings")
    async def embed(body: EmbeddingBody, request: Request) -> dict[str, Any]:
        """A vector for each input."""
        model = service.model(body.model)
        embedder = needed_embedder(model)
        prompts = await _inputs(model, body)
        vectors = await embedded(service, request, embedder, prompts)
        count = sum(map(len, prompts))
        return {
            "object": "list",
            "model": model.name,
            "data": [
                {"object": "embedding", "index": index, "embedding": _written(vector, body)}
                for index, vector in enumerate(vectors)
            ],
            "usage": {"prompt_tokens": count, "total_tokens": count},
        }

    return router


async def _tokens(model: ServedModel, body: TokenizeBody) -> list[int]:
    if (body.prompt is None) == (body.messages is None):
        raise invalid("prompt", "give either prompt or messages")
    if body.prompt is not None:
        add = body.add_special_tokens is not False
        return await encode(model, body.prompt, add_special_tokens=add)
    return await chat_prompt(
        model,
        body.messages or (),
        body.tools or (),
        add_generation_prompt=body.add_generation_prompt,
        add_special_tokens=bool(body.add_special_tokens),
        names=body.chat_template_kwargs,
    )


async def _inputs(model: ServedModel, body: EmbeddingBody) -> list[list[int]]:
    given = body.input
    several = isinstance(given, list) and not (given and isinstance(given[0], int))
    each = cast("list[str | list[int]]", given if several else [given])
    if not each:
        raise invalid("input", "an empty list asks for nothing")
    return await prompts_of(model, each)


async def embedded(
    service: Service, request: Request, embedder: Embedder, prompts: list[list[int]]
) -> list[list[float]]:
    """The vectors of prompts, some at a time, so that a request of many leaves room for others and
    ends when its client leaves or its time is over.
    """

    async def work() -> list[list[float]]:
        found: list[list[float]] = []
        for begin in range(0, len(prompts), _AT_ONCE):
            some = prompts[begin : begin + _AT_ONCE]
            found += await asyncio.to_thread(embedder.embed, some)
        return found

    return await until_gone(work(), request, service.settings.request_seconds)


def needed_embedder(model: ServedModel) -> Embedder:
    """The model's embedder; an error for a model that generates."""
    if model.embedder is None:
        message = f"the model {model.name!r} was compiled to generate and gives no embeddings"
        raise ApiError(400, message, param="model", code="unsupported_model")
    return model.embedder


async def prompts_of(model: ServedModel, texts: Sequence[str | list[int]]) -> list[list[int]]:
    """The token ids of texts, or those given, each within the model's length."""
    found = []
    for one in texts:
        if isinstance(one, str):
            one = await encode(model, one, add_special_tokens=True)
        found.append(fitted(model, one, None, "input"))
    return found


def _written(vector: list[float], body: EmbeddingBody) -> list[float] | str:
    if body.encoding_format == "float":
        return vector
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
