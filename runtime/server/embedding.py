"""Embeddings of a compiled module that reads token ids and gives hidden states or one vector."""

from collections.abc import Mapping

import numpy as np

from ...ir.plan import PlanError
from ..artifact import Artifact
from ..errors import ArtifactError
from ..tensors import Array
from .errors import ApiError

_WANTED = "input_ids"
_KNOWN = {_WANTED, "attention_mask", "token_type_ids", "position_ids"}


class ModuleEmbedder:
    """Runs each prompt alone. Hidden states [1, S, H] are averaged over tokens, a vector [1, H] is
    taken as it is; the result has length 1.
    """

    def __init__(self, artifact: Artifact, longest: int, vocabulary: int) -> None:
        self._artifact = artifact
        self.longest, self.vocabulary = longest, vocabulary

    def embed(self, prompts: list[list[int]]) -> list[list[float]]:
        """The vectors, in order."""
        return [self._vector(prompt).tolist() for prompt in prompts]

    def _vector(self, prompt: list[int]) -> Array:
        wanted = {spec.name: spec.dtype for spec in self._artifact.module.inputs}
        try:
            results = self._artifact.module.run(_inputs(prompt, wanted))
        except (ValueError, PlanError) as error:
            raise ApiError(400, f"input: {error}", param="input", code="invalid_value") from error
        first = np.asarray(next(iter(results.values()))).astype(np.float32)[0]
        vector = first.mean(axis=0) if first.ndim == 2 else first
        return vector / max(float(np.linalg.norm(vector)), 1e-12)


def embedder_of(artifact: Artifact) -> ModuleEmbedder:
    """The embedder of an artifact without a logits head; an error for a module of another kind."""
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
        artifact, artifact.plan.largest(shape[-1:])[0] + 1, artifact.text.tokenizer.get_vocab_size()
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
