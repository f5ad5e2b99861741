"""/v1/embeddings, /pooling and /classify: a vector for each input."""

import base64
import time
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from fastapi import APIRouter, Request

from ..pooling import probabilities, unit
from ..tensors import Array
from .conversation import chat_prompt
from .errors import ApiError, invalid
from .fields import EmbeddingBody, InputBody, Message, Pooled, PoolingBody
from .generation import encode, fitted, new_id
from .models import Embedder, ServedModel
from .service import Service
from .streams import until_gone

# Fields that say how a chat template is to write messages.
_OF_MESSAGES = {"chat_template", "chat_template_kwargs"}
_OF_MESSAGES |= {"add_generation_prompt", "continue_final_message"}


def routes(service: Service) -> APIRouter:
    """The endpoints over a service."""
    router = APIRouter(tags=["pooling"])

    @router.post("/v1/embeddings")
    async def embed(body: EmbeddingBody, request: Request) -> dict[str, Any]:
        """A vector of length 1 for each input, or its first `dimensions` entries at that length."""
        model = service.model(body.model)
        needed_embedder(model)
        prompts = await _prompts(service, model, body)
        vectors = [_sized(v, body) for v in await pooled(service, request, model, body, prompts)]
        vectors = [unit(v) for v in vectors] if body.normalize is not False else vectors
        data = [
            {"object": "embedding", "index": n, "embedding": _written(v, body.encoding_format)}
            for n, v in enumerate(vectors)
        ]
        return {"object": "list", "model": model.name, "data": data, "usage": usage_of(prompts)}

    @router.post("/v1/pooling", include_in_schema=False)
    @router.post("/pooling")
    async def pooling(body: PoolingBody, request: Request) -> dict[str, Any]:
        """What the model gives for each input as it is: no length is made 1, no probabilities are
        made of scores.
        """
        model = service.model(body.model)
        needed_vectors(model)
        prompts = await _prompts(service, model, body)
        vectors = await pooled(service, request, model, body, prompts)
        data = [
            {"index": n, "object": "pooling", "data": _written(v, body.encoding_format)}
            for n, v in enumerate(vectors)
        ]
        return listed("pool-", model, data, prompts)

    @router.post("/v1/classify", include_in_schema=False)
    @router.post("/classify")
    async def classify(body: InputBody, request: Request) -> dict[str, Any]:
        """The likeliest label of each input, and the probabilities of all."""
        model = service.model(body.model)
        classifier = needed_classifier(model)
        prompts = await _prompts(service, model, body)
        scores = await pooled(service, request, model, body, prompts)
        data = [_classified(n, s, classifier) for n, s in enumerate(scores)]
        return listed("classify-", model, data, prompts)

    return router


def _classified(index: int, scores: Array, classifier: Embedder) -> dict[str, Any]:
    found = classifier.pooling
    assert found is not None and found.labels, "a classifier without labels"
    shares = probabilities(scores, found.activation)
    label = found.labels[int(shares.argmax())]
    return {
        "index": index,
        "label": label,
        "probs": shares.tolist(),
        "num_classes": len(shares),
    }


def listed(
    prefix: str, model: ServedModel, data: list[dict[str, Any]], prompts: Sequence[list[int]]
) -> dict[str, Any]:
    """An answer with an id, when it was made, and what it took."""
    return {
        "id": new_id(prefix),
        "object": "list",
        "created": int(time.time()),
        "model": model.name,
        "data": data,
        "usage": usage_of(prompts),
    }


def usage_of(prompts: Sequence[list[int]]) -> dict[str, int]:
    """Counts of tokens as clients read them."""
    count = sum(map(len, prompts))
    return {"prompt_tokens": count, "total_tokens": count, "completion_tokens": 0}


async def _prompts(service: Service, model: ServedModel, body: InputBody) -> list[list[int]]:
    if body.messages is not None:
        return [await _conversation(service, model, body, body.messages)]
    if wrong := _OF_MESSAGES.intersection(body.model_fields_set):
        raise invalid(min(wrong), "needs messages")
    given = body.input
    if given is None:
        raise invalid("input", "give either input or messages", "missing_required_parameter")
    several = isinstance(given, list) and not (given and isinstance(given[0], int))
    each = cast("list[str | list[int]]", given if several else [given])
    if not each:
        raise invalid("input", "an empty list asks for nothing")
    add = body.add_special_tokens is not False
    return [await _tokens(model, one, body, "input", add_special_tokens=add) for one in each]


async def _conversation(
    service: Service, model: ServedModel, body: InputBody, messages: Sequence[Message]
) -> list[int]:
    if body.input is not None:
        raise invalid("input", "not together with messages")
    tokens = await chat_prompt(
        model,
        messages,
        (),
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        add_special_tokens=bool(body.add_special_tokens),
        names=body.chat_template_kwargs,
        source=service.own_template(body.chat_template),
    )
    return fitted(model, tokens, body.truncate_prompt_tokens, "messages", room=0)


async def prompts_of(
    model: ServedModel, texts: Sequence[str], body: Pooled, param: str
) -> list[list[int]]:
    """The token ids of texts, each within the model's length."""
    return [await _tokens(model, t, body, param, add_special_tokens=True) for t in texts]


async def _tokens(
    model: ServedModel,
    given: str | list[int],
    body: Pooled,
    param: str,
    *,
    add_special_tokens: bool,
) -> list[int]:
    ids = given
    if isinstance(ids, str):
        ids = await encode(model, ids, add_special_tokens=add_special_tokens)
    return fitted(model, ids, body.truncate_prompt_tokens, param, room=0)


async def pooled(
    service: Service,
    request: Request,
    model: ServedModel,
    body: Pooled,
    prompts: Sequence[list[int]],
) -> list[Array]:
    """The vectors of prompts; ended when the client leaves or its time is over."""
    embedder, request_id = needed_vectors(model), body.request_id or new_id("pool-")
    work = embedder.vectors(request_id, prompts, **service.options(request, body))
    request.state.summary = {
        "model": model.name,
        "request_id": request_id,
        "prompt_tokens": sum(map(len, prompts)),
    }
    return await until_gone(work, request, service.settings.request_seconds)


def needed_vectors(model: ServedModel) -> Embedder:
    """The model's embedder or classifier; an error for a model that generates."""
    if model.embedder is None:
        message = f"the model {model.name!r} was compiled to generate and gives no embeddings"
        raise ApiError(400, message, param="model", code="unsupported_model")
    return model.embedder


def needed_embedder(model: ServedModel) -> Embedder:
    """The model's embedder; an error for a model that generates, or classifies."""
    found = needed_vectors(model)
    if found.labels:
        message = f"the model {model.name!r} is a classifier and gives no embeddings"
        raise ApiError(400, message, param="model", code="unsupported_model")
    return found


def needed_classifier(model: ServedModel) -> Embedder:
    """The model's classifier; an error for another model."""
    found = model.embedder
    if found is None or not found.labels:
        message = f"the model {model.name!r} is no classifier: compile one with --pooling classify"
        raise ApiError(400, message, param="model", code="unsupported_model")
    return found


def _sized(vector: Array, body: EmbeddingBody) -> Array:
    wanted = body.dimensions
    if wanted is None:
        return vector
    if wanted > len(vector):
        raise invalid("dimensions", f"given {wanted}, the model's vectors have {len(vector)}")
    return vector[:wanted]


def _written(vector: Array, form: str) -> list[float] | str:
    if form == "float":
        return vector.tolist()
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
