"""The models of a server, by name."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..pooling import Pooling
from ..tensors import Array
from ..text import Text
from .errors import ApiError, no_model
from .front import EngineFront
from .live import LiveWindow


class Embedder:
    """What a model without a logits head gives: a vector for each list of token ids. `pooling` is
    how its engine makes it; None where a module does.
    """

    pooling: Pooling | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """What a classifier's vectors are the scores of; nothing for embeddings."""
        return (self.pooling.labels or ()) if self.pooling else ()

    async def vectors(
        self, request_id: str, prompts: Sequence[list[int]], **options: Any
    ) -> list[Array]:
        """The vectors f32[H], in order; options are those of a request to an engine."""
        raise NotImplementedError


@dataclass(eq=False)
class ServedModel:
    """A model under its name. `front` is None where no engine runs it, `embedder` where it
    generates.

    `plan` is what /plan answers, `kernels` what /kernels does (None: no step was timed yet), and
    `config` how its engine was made; `max_context` counts prompt and output together; what in the
    model bounds it, `bounded`, ends the sentence of a refusal. `sampling`
    holds for requests that do not say otherwise; `fingerprint` tells builds apart,
    `startup_seconds` is what it took to load.
    """

    name: str
    text: Text | None
    max_context: int
    vocabulary: int
    front: EngineFront | None = None
    embedder: Embedder | None = None
    live: LiveWindow = field(default_factory=LiveWindow)
    plan: Mapping[str, Any] = field(default_factory=dict[str, Any])
    sampling: Mapping[str, Any] = field(default_factory=dict[str, Any])
    config: Mapping[str, str] = field(default_factory=dict[str, str])
    kernels: Callable[[], dict[str, Any] | None] = field(default=lambda: None)
    fingerprint: str | None = None
    startup_seconds: float | None = None
    bounded: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def generates(self) -> EngineFront:
        """The front; an error for a model that only embeds."""
        if self.front is None or self.embedder is not None:
            message = f"the model {self.name!r} has no logits head: it embeds and does not generate"
            raise ApiError(400, message, param="model", code="unsupported_model")
        return self.front

    @property
    def tokenizer(self) -> Text:
        """The tokenizer; an error for an artifact without one."""
        if self.text is None:
            message = f"the model {self.name!r} has no tokenizer: give token ids, not text"
            raise ApiError(400, message, param="model", code="unsupported_model")
        return self.text

    def to_json(self) -> dict[str, Any]:
        """The entry in /v1/models."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "ferrule",
            "root": self.name,
            "parent": None,
            "max_model_len": self.max_context,
        }


class Models:
    """The models of a server; the first one answers where none is named."""

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self._models = {model.name: model for model in models}
        assert self._models, "a server without models"

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def __getitem__(self, name: str | None) -> ServedModel:
        if name is None:
            return next(iter(self))
        if name not in self._models:
            raise no_model(name, list(self._models))
        return self._models[name]

    @property
    def fronts(self) -> dict[str, EngineFront]:
        """The fronts of the models that have an engine."""
        return {m.name: m.front for m in self if m.front is not None}
