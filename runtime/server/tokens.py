"""/tokenize and /detokenize."""

from typing import Any

from fastapi import APIRouter

from .conversation import chat_prompt
from .errors import invalid
from .fields import DetokenizeBody, TokenizeBody
from .generation import encode, token_text
from .models import ServedModel
from .service import Service


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
