"""What a model gives for each token that is pooled: hidden states, or a classifier's scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import nn

from .errors import CompileError
from .one_row import OneRow

Pool = Callable[[torch.Tensor], torch.Tensor]
POOLINGS: Mapping[str, Pool] = {  # of hidden states [1, S, H]
    "last": lambda hidden: hidden[:, -1],
    "mean": lambda hidden: hidden.mean(1),
    "cls": lambda hidden: hidden[:, 0],
}
NO_TOKEN = -1  # stands for the padding token, so that no token of a text is taken for it


class HiddenRows(nn.Module):
    """Token ids [B, S] to the last layer's hidden states [B, S, H], with the model's final norm."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.config = base.config

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The hidden states."""
        return _called(self.base, input_ids=input_ids).last_hidden_state


class Pooled(nn.Module):
    """Token ids [1, S] to one vector [1, H] in float32: the hidden states pooled over the
    tokens.
    """

    def __init__(self, base: nn.Module, pooling: str) -> None:
        super().__init__()
        self.rows, self.pool = HiddenRows(base), POOLINGS[pooling]

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The vector of one text."""
        return self.pool(self.rows(input_ids)).float()


class ScoreRows(nn.Module):
    """Token ids [B, S] to the scores [B, S, L] that a sequence classifier would give each token if
    it were the one that its head reads; `kind` says which that is.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.config = model.config
        self._noted = _Noted()

    @property
    def kind(self) -> str:
        """Which row the head reads."""
        assert self._noted.kind, "a classifier that was not captured"
        return self._noted.kind

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The scores of every token."""
        config: Any = self.config
        kept, config.pad_token_id = config.pad_token_id, NO_TOKEN
        try:
            with OneRow(input_ids) as rows:
                scores = _called(self.model, **typed(self.model, input_ids)).logits
        finally:
            config.pad_token_id = kept
        self._noted.kind = rows.kind
        return scores


class _Noted:
    """What a trace finds out: it undoes what is assigned to a module."""

    kind = ""


@dataclass(frozen=True, eq=False)
class PooledModel:
    """A model to be pooled: `rows` gives something for each token, `vector` is what eager makes of
    one text, ids [1, S] to [1, W]. Of a classifier `labels` name the entries, `activation` makes
    probabilities of them, and token ids come in `types`, the vocabulary over and over.
    """

    rows: nn.Module
    vector: Callable[[torch.Tensor], torch.Tensor]
    pooling: str | None = None
    labels: tuple[str, ...] | None = None
    activation: str = "softmax"
    types: int = 1

    @property
    def kind(self) -> str:
        """Which rows count; a classifier knows it once it was captured."""
        if self.pooling is not None:
            return self.pooling
        assert isinstance(self.rows, ScoreRows), f"{type(self.rows)} has no row of its own"
        return self.rows.kind

    @staticmethod
    def embedding(base: nn.Module, pooling: str) -> PooledModel:
        """A model without its head, and how its hidden states are pooled."""
        return PooledModel(HiddenRows(base), Pooled(base, pooling).eval(), pooling)

    @staticmethod
    def classifying(model: nn.Module) -> PooledModel:
        """A sequence classifier; raises CompileError where a model is none."""
        config: Any = getattr(model, "config", None)
        names = getattr(config, "id2label", None)
        if not names or not hasattr(model, "num_labels"):
            raise CompileError(
                f"pooling 'classify': {type(model).__name__} is no sequence classifier of "
                "transformers: it has no labels"
            )
        return PooledModel(
            ScoreRows(model),
            lambda ids: _called(model, **typed(model, ids)).logits.float(),
            labels=tuple(str(names[n]) for n in sorted(names)),
            activation=_activation(config, len(names)),
            types=types_of(model),
        )


def _activation(config: Any, count: int) -> str:
    """What makes probabilities of scores, as the pipelines of transformers choose it."""
    problem = getattr(config, "problem_type", None)
    if problem == "regression":
        return "none"
    return "sigmoid" if problem == "multi_label_classification" or count == 1 else "softmax"


def types_of(model: nn.Module) -> int:
    """How many types of tokens a model tells apart, such as those of a pair's two texts; 2 at
    most.
    """
    takes = "token_type_ids" in signature(model.forward).parameters
    return 2 if takes and getattr(model.config, "type_vocab_size", 1) > 1 else 1


def typed(model: nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Token ids and types as a model takes them: a token of the second type is its id plus the size
    of the vocabulary.
    """
    if types_of(model) == 1:
        return {"input_ids": ids}
    vocabulary = int(model.config.vocab_size)  # type: ignore[union-attr, arg-type]
    second = ids >= vocabulary
    plain = torch.where(second, ids - vocabulary, ids)
    return {"input_ids": plain, "token_type_ids": second.to(ids.dtype)}


def _called(model: nn.Module, **inputs: torch.Tensor) -> Any:
    config: Any = model.config
    given = {"use_cache": False} if hasattr(config, "use_cache") else {}
    return model(**inputs, return_dict=True, **given)
