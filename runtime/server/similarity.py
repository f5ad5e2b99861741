"""/score and /rerank: how well texts go together, by a cross-encoder's score of each pair, or by
the cosine of their embeddings.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request

from ..pooling import probabilities, unit
from ..tensors import Array
from .errors import ApiError, invalid
from .fields import Pooled, RerankBody, ScoreBody
from .generation import fitted, new_id
from .models import Embedder, ServedModel
from .pooling import listed, needed_vectors, pooled, prompts_of, usage_of
from .service import Service

Scored = tuple[Array, list[list[int]]]


def routes(service: Service) -> APIRouter:
    """The endpoints over a service."""
    router = APIRouter(tags=["pooling"])

    @router.post("/v1/score", include_in_schema=False)
    @router.post("/score")
    async def score(body: ScoreBody, request: Request) -> dict[str, Any]:
        """The scores of pairs: one text with each of several, or as many with as many."""
        model = service.model(body.model)
        first, second = _texts(body.text_1), _texts(body.text_2)
        if len(first) not in (1, len(second)):
            raise invalid("text_1", f"{len(first)} texts beside {len(second)}; wanted 1 or as many")
        scores, prompts = await _scored(service, request, model, body, first, second)
        data = [{"index": i, "object": "score", "score": float(s)} for i, s in enumerate(scores)]
        return listed("score-", model, data, prompts)

    @router.post("/v1/rerank", include_in_schema=False)
    @router.post("/v2/rerank", include_in_schema=False)
    @router.post("/rerank")
    async def rerank(body: RerankBody, request: Request) -> dict[str, Any]:
        """Documents by how well they go with a query, the best first."""
        model = service.model(body.model)
        texts = body.documents
        scores, prompts = await _scored(service, request, model, body, [body.query], texts)
        best = np.argsort(-scores, kind="stable")[: body.top_n or len(scores)]
        results = [
            {"index": int(at), "relevance_score": float(scores[at])}
            | ({"document": {"text": texts[at]}} if body.return_documents else {})
            for at in best
        ]
        usage = usage_of(prompts)
        return {"id": new_id("rerank-"), "model": model.name, "results": results, "usage": usage}

    return router


def _texts(given: str | list[str]) -> list[str]:
    return [given] if isinstance(given, str) else given


async def _scored(
    service: Service,
    request: Request,
    model: ServedModel,
    body: Pooled,
    first: Sequence[str],
    second: Sequence[str],
) -> Scored:
    """A score for each of the second texts, and the prompts that were read for them."""
    embedder = needed_vectors(model)
    if embedder.labels:
        return await _of_pairs(service, request, model, body, embedder, first, second)
    prompts = await prompts_of(model, [*first, *second], body, "text")
    found = await pooled(service, request, model, body, prompts)
    vectors = np.stack([unit(v) for v in found])
    pairs = np.broadcast_to(vectors[: len(first)], (len(second), vectors.shape[1]))
    return (pairs * vectors[len(first) :]).sum(-1), prompts


async def _of_pairs(
    service: Service,
    request: Request,
    model: ServedModel,
    body: Pooled,
    embedder: Embedder,
    first: Sequence[str],
    second: Sequence[str],
) -> Scored:
    pooling = embedder.pooling
    assert pooling is not None, "a classifier without a pooling"
    if len(embedder.labels) != 1:
        message = (
            f"the model {model.name!r} tells {len(embedder.labels)} labels apart: a score comes of "
            "one label, or of embeddings"
        )
        raise ApiError(400, message, param="model", code="unsupported_model")
    beside = first if len(first) > 1 else [first[0]] * len(second)
    offset = pooling.vocabulary if pooling.types > 1 else 0

    def tokens() -> list[list[int]]:
        return [model.tokenizer.pair(a, b, offset) for a, b in zip(beside, second, strict=True)]

    last = body.truncate_prompt_tokens
    made = await asyncio.to_thread(tokens)
    prompts = [fitted(model, ids, last, "text", room=0, types=pooling.types) for ids in made]
    found = await pooled(service, request, model, body, prompts)
    scores = [probabilities(v, pooling.activation)[0] for v in found]
    return np.array(scores, np.float32), prompts
