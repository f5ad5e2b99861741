"""/score and /rerank: how near texts are, by the cosine of their embeddings."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request

from .errors import invalid
from .fields import RerankBody, ScoreBody
from .generation import new_id
from .models import ServedModel
from .service import Service
from .tokens import embedded, needed_embedder, prompts_of


def routes(service: Service) -> APIRouter:
    """The endpoints over a service."""
    router = APIRouter(tags=["tokens"])

    @router.post("/v1/score", include_in_schema=False)
    @router.post("/score")
    async def score(body: ScoreBody, request: Request) -> dict[str, Any]:
        """The nearness of pairs: one text with each of several, or as many with as many."""
        model = service.model(body.model)
        first, second = _texts(body.text_1), _texts(body.text_2)
        if len(first) not in (1, len(second)):
            raise invalid("text_1", f"{len(first)} texts beside {len(second)}; wanted 1 or as many")
        found, count = await _vectors(service, request, model, [*first, *second])
        pairs = np.broadcast_to(found[: len(first)], (len(second), found.shape[1]))
        scores = (pairs * found[len(first) :]).sum(-1)
        data = [{"index": i, "object": "score", "score": float(s)} for i, s in enumerate(scores)]
        return {
            "id": new_id("score-"),
            "object": "list",
            "model": model.name,
            "data": data,
            "usage": {"prompt_tokens": count, "total_tokens": count},
        }

    @router.post("/v1/rerank", include_in_schema=False)
    @router.post("/v2/rerank", include_in_schema=False)
    @router.post("/rerank")
    async def rerank(body: RerankBody, request: Request) -> dict[str, Any]:
        """Documents by their nearness to a query, the nearest first."""
        model = service.model(body.model)
        texts = [body.query, *body.documents]
        found, count = await _vectors(service, request, model, texts)
        scores = found[1:] @ found[0]
        best = np.argsort(-scores, kind="stable")[: body.top_n or len(scores)]
        results = [
            {"index": int(at), "relevance_score": float(scores[at])}
            | ({"document": {"text": body.documents[at]}} if body.return_documents else {})
            for at in best
        ]
        usage = {"prompt_tokens": count, "total_tokens": count}
        return {"id": new_id("rerank-"), "model": model.name, "results": results, "usage": usage}

    return router


def _texts(given: str | list[str]) -> list[str]:
    return [given] if isinstance(given, str) else given


async def _vectors(
    service: Service, request: Request, model: ServedModel, texts: Sequence[str]
) -> tuple[np.ndarray[Any, Any], int]:
    """The embeddings [n, H], each of length 1, and the tokens that they took."""
    embedder = needed_embedder(model)
    prompts = await prompts_of(model, texts)
    vectors = await embedded(service, request, embedder, prompts)
    return np.asarray(vectors, np.float32), sum(map(len, prompts))
