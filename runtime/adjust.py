"""Changes to logits before a token is chosen: what may not come, and what should come less."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from .errors import RequestError
from .params import SamplingParams
from .tensors import Array
from .text import Text

Words = tuple[tuple[int, ...], ...]


class Constraint(Protocol):
    """A grammar, or another rule, that one sequence follows."""

    @property
    def complete(self) -> bool:
        """Whether nothing may follow the last token."""
        ...

    def allowed(self) -> Array | None:
        """Which tokens may come next, bool[V]; None for all."""
        ...

    def accept(self, token: int) -> None:
        """The token that came."""
        ...


class Adjuster:
    """The changes that one sequence's parameters ask for; it follows the tokens that came.

    `ends` are kept out until `min_tokens` are there; `bad_words` are token ids, the last of which
    is kept out after the others.
    """

    def __init__(
        self,
        params: SamplingParams,
        ends: Iterable[int] = (),
        prompt: Sequence[int] = (),
        bad_words: Words = (),
        constraint: Constraint | None = None,
    ) -> None:
        self.params, self.constraint = params, constraint
        self._ends = sorted(ends)
        self._bad_words = bad_words
        self._output: list[int] = []
        self._counts: Counter[int] = Counter()
        self._seen = dict.fromkeys(prompt if params.repetition_penalty != 1.0 else ())
        bias = params.logit_bias or {}
        self._biased, self._bias = list(bias), np.array(list(bias.values()), np.float32)
        allowed = params.allowed_token_ids
        self._allowed = None if allowed is None else np.unique(np.array(allowed))
        self._penalized = params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
        self._always = bool(
            bias
            or bad_words
            or constraint
            or allowed is not None
            or self._penalized
            or params.repetition_penalty != 1.0
        )

    def changes(self, generated: int) -> bool:
        """Whether the next row of logits is to be changed, `generated` tokens being there."""
        return self._always or (generated < self.params.min_tokens and bool(self._ends))

    def apply(self, logits: Array, generated: int) -> Array:
        """A changed copy of a row of logits. Raises `RequestError` where no token is left."""
        changed = logits.copy()
        if self.constraint and (tokens := self.constraint.allowed()) is not None:
            changed[~tokens] = -np.inf
        if self._allowed is not None:
            kept = changed[self._allowed]
            changed.fill(-np.inf)
            changed[self._allowed] = kept
        for word in self._bad_words:
            if word[:-1] == tuple(self._output[len(self._output) - len(word) + 1 :]):
                changed[word[-1]] = -np.inf
        if generated < self.params.min_tokens:
            changed[self._ends] = -np.inf
        changed[self._biased] += self._bias
        self._penalize(changed)
        if not np.isfinite(changed.max()):
            raise RequestError("the request's own rules leave no token that may come next")
        return changed

    def _penalize(self, logits: Array) -> None:
        params = self.params
        if params.repetition_penalty != 1.0:
            seen = np.array([*self._seen], np.int64)
            values, factor = logits[seen], np.float32(params.repetition_penalty)
            logits[seen] = np.where(values > 0, values / factor, values * factor)
        if self._penalized and self._counts:
            seen = np.array([*self._counts], np.int64)
            counts = np.array([*self._counts.values()], np.float32)
            logits[seen] -= params.frequency_penalty * counts + params.presence_penalty

    def accept(self, token: int) -> None:
        """Follow the token that was chosen."""
        if not self._always:
            return
        if self._bad_words:
            self._output.append(token)
        if self._penalized:
            self._counts[token] += 1
        if self.params.repetition_penalty != 1.0:
            self._seen[token] = None
        if self.constraint:
            self.constraint.accept(token)


def bad_word_tokens(words: Sequence[str], text: Text) -> Words:
    """The token ids of each word, at the beginning of a text and after a space."""
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        first = tuple(text.encode(word.lstrip(), add_special_tokens=False))
        spaced = tuple(text.encode(" " + word.lstrip(), add_special_tokens=False))
        found[first] = None
        # A tokenizer that makes the space a token of its own would have it kept out, too.
        if spaced and first and spaced[0] != first[0] and len(spaced) == len(first):
            found[spaced] = None
    return tuple(tokens for tokens in found if tokens)
