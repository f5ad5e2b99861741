"""Vectors of prompts: by an engine that pools, or by a compiled module that takes one at a time."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...ir.plan import PlanError
from ..artifact import Artifact
from ..engine import Delta
from ..errors import ArtifactError, RequestError
from ..pooling import Pooling
from ..tensors import Array
from .errors import ApiError, failed, refused
from .front import EngineFront
from .models import Embedder

_WANTED = "input_ids"
_KNOWN = {_WANTED, "attention_mask", "token_type_ids", "position_ids"}
_AT_ONCE = 8  # prompts of a request that a module embeds before others have their turn


class EngineEmbedder(Embedder):
    """Prompts as requests of an engine, which batches those of all callers together. Of one caller
    at most `at_once` are in it, so that many prompts leave room for others.
    """

    def __init__(self, front: EngineFront, pooling: Pooling, at_once: int) -> None:
        self._front, self.pooling, self._at_once = front, pooling, at_once

    async def vectors(
        self, request_id: str, prompts: Sequence[list[int]], **options: Any
    ) -> list[Array]:
        """The vectors, in order; where one cannot be had none is, and what runs is ended."""
        self._front.reserve(min(len(prompts), self._at_once))
        places = asyncio.Semaphore(self._at_once)

        async def one(name: str, prompt: list[int]) -> Array:
            async with places:
                return await self._vector(name, prompt, options)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(one(f"{request_id}-{number}", prompt))
                    for number, prompt in enumerate(prompts)
                ]
        except ExceptionGroup as several:
            raise several.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _vector(self, name: str, prompt: list[int], options: Mapping[str, Any]) -> Array:
        done: asyncio.Future[Delta] = asyncio.get_running_loop().create_future()

        def sink(delta: Delta) -> None:
            if not done.done():
                done.set_result(delta)

        try:
            await self._front.submit(name, prompt, None, sink, **options)
        except RequestError as error:
            raise refused(error) from error
        try:  # from here on it is ours to end
            delta = await done
        finally:
            self._front.abort(name)
        if delta.error is not None:
            raise failed(delta.error)
        if delta.vector is None:
            raise ApiError(503, "the server is shutting down", code="draining", retry_after=5)
        return delta.vector


class AloneEmbedder(Embedder):
    """Prompts one after another, beside the event loop."""

    async def vectors(
        self, request_id: str, prompts: Sequence[list[int]], **options: Any
    ) -> list[Array]:
        """The vectors, in order, some at a time."""
        found: list[Array] = []
        for begin in range(0, len(prompts), _AT_ONCE):
            some = prompts[begin : begin + _AT_ONCE]
            found += await asyncio.to_thread(self.embed, some)
        return found

    def embed(self, prompts: Sequence[list[int]]) -> list[Array]:
        """The vectors of some prompts, in order."""
        raise NotImplementedError


class ModuleEmbedder(AloneEmbedder):
    """A compiled module that reads token ids. Hidden states [1, S, H] are averaged over tokens, a
    vector [1, H] is taken as it is.
    """

    def __init__(self, artifact: Artifact, longest: int, vocabulary: int) -> None:
        self._artifact = artifact
        self.longest, self.vocabulary = longest, vocabulary

    def embed(self, prompts: Sequence[list[int]]) -> list[Array]:
        """The vectors of some prompts, in order."""
        return [self._vector(prompt) for prompt in prompts]

    def _vector(self, prompt: list[int]) -> Array:
        wanted = {spec.name: spec.dtype for spec in self._artifact.module.inputs}
        try:
            results = self._artifact.module.run(_inputs(prompt, wanted))
        except (ValueError, PlanError) as error:
            raise ApiError(400, f"input: {error}", param="input", code="invalid_value") from error
        first = np.asarray(next(iter(results.values()))).astype(np.float32)[0]
        return first.mean(axis=0) if first.ndim == 2 else first


def embedder_of(artifact: Artifact) -> ModuleEmbedder:
    """The embedder of an artifact without steps; an error for a module of another kind."""
    names = [spec.name for spec in artifact.module.inputs]
    if _WANTED not in names or not _KNOWN.issuperset(names):
        raise ArtifactError(
            f"{artifact.path}: cannot be served: its inputs are {', '.join(names)}, wanted those of"
            f" a language model or {', '.join(sorted(_KNOWN))}"
        )
    if artifact.text is None:
        raise ArtifactError(f"{artifact.path}: cannot be served: it has no tokenizer")
    shape = next(s.shape for s in artifact.module.inputs if s.name == _WANTED)
    return ModuleEmbedder(
        artifact, artifact.plan.largest(shape[-1:])[0], artifact.text.tokenizer.get_vocab_size()
    )


def _inputs(prompt: list[int], wanted: Mapping[str, str]) -> dict[str, Array]:
    length = len(prompt)
    values = {
        _WANTED: np.array([prompt]),
        "attention_mask": np.ones((1, length), np.int64),
        "token_type_ids": np.zeros((1, length), np.int64),
        "position_ids": np.arange(length)[None],
    }
    kinds = {"i64": np.int64, "i32": np.int32, "bool": np.bool_, "f32": np.float32}
    return {name: values[name].astype(kinds[dtype]) for name, dtype in wanted.items()}
