"""Pooling: what an artifact without a logits head makes of a prompt's rows, one vector a prompt."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from .errors import ArtifactError, LogitsError
from .params import SamplingParams
from .results import Delta
from .scheduler import Scheduler
from .sequence import Sequence as Scheduled
from .tensors import Array
from .track import Request, Track

KINDS = ("last", "mean", "cls")


@dataclass(frozen=True)
class Pooling:
    """How rows become a vector: the last token's, the mean of all, or the first token's ("cls").

    `whole`: a step has all tokens of a prompt, since they read later ones. Of a classifier `labels`
    name the vector's entries, and `activation` makes probabilities of them. With two `types` a
    token of the second one is its id plus the size of the vocabulary.
    """

    kind: str
    whole: bool
    vocabulary: int
    labels: tuple[str, ...] | None = None
    activation: str = "softmax"
    types: int = 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ArtifactError(f"pooling by {self.kind!r}; known: {', '.join(KINDS)}")
        if self.activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ArtifactError(f"an activation {self.activation!r}; known: {known}")

    @staticmethod
    def of_manifest(manifest: Mapping[str, Any]) -> "Pooling | None":
        """The pooling that an artifact was built with, if any."""
        given = manifest.get("pooling")
        if given is None:
            return None
        try:
            known: dict[str, Any] = {f.name: given[f.name] for f in fields(Pooling)}
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"manifest: pooling {given!r} lacks {error}") from error
        known["labels"] = known["labels"] and tuple(known["labels"])
        return Pooling(**known)

    @property
    def token_ids(self) -> int:
        """The numbers that stand for a token of some type."""
        return self.vocabulary * self.types

    def to_json(self) -> dict[str, Any]:
        """The fields as a manifest has them."""
        return asdict(self)

    @property
    def reads_all(self) -> bool:
        """Whether more rows are wanted than one in a step with all of the prompt."""
        return self.kind == "mean" or (self.kind == "cls" and not self.whole)

    def longest(self, max_context: int, scheduler: Scheduler) -> int:
        """The most tokens of a prompt: a whole one has to find room in a step."""
        if not self.whole:
            return max_context
        rows = scheduler.rows if self.reads_all else max_context
        return min(max_context, scheduler.chunk, rows)

    def request(self, name: str, tokens: Sequence[int]) -> Request:
        """A request that ends with a vector; what is said of sampling has no meaning to it."""

        def fresh(number: int) -> Track:
            return PooledTrack(request, number, self._sequence(name, tokens), self)

        request = Request(name, SamplingParams(), tuple(tokens), fresh)
        return request

    def _sequence(self, name: str, tokens: Sequence[int]) -> Scheduled:
        return Scheduled(
            name,
            list(tokens),
            len(tokens),
            limit=1,
            all_rows=self.reads_all,
            first_row=self.kind == "cls",
            whole=self.whole,
            # Blocks that are found are not computed, and would have no rows.
            reads_cache=not (self.whole or self.reads_all),
        )


@dataclass(eq=False)
class PooledTrack(Track):
    """A prompt on its way to its vector: takes rows as steps give them, and ends with the prompt's
    last one.
    """

    pooling: Pooling
    _sum: Array | None = field(default=None, init=False)
    _taken: int = field(default=0, init=False)

    @property
    def reads_logits(self) -> bool:
        """Rows are all that is wanted."""
        return True

    def note_prompt(self, begin: int, logits: Array) -> None:
        """Take the rows of tokens from the position `begin` on; a prompt that is computed again
        begins anew.
        """
        if begin == 0:
            self._sum, self._taken = None, 0
        assert begin == self._taken, f"rows from {begin} on behind {self._taken} that came"
        self._taken += len(logits)
        if self.pooling.kind == "cls":
            self._sum = np.array(logits[0]) if self._sum is None else self._sum
            return
        found = logits.sum(axis=0, dtype=np.float64)
        self._sum = found if self._sum is None else self._sum + found

    def extend(self, greedy: int, logits: Array) -> Delta:
        """The end, with the vector in float32; an error where a row is no numbers."""
        vector = self._vector(logits)
        if greedy < 0 or not np.isfinite(vector).all():
            raise LogitsError("the model gave a row that is no numbers")
        return Delta(
            self.request.name,
            finish_reason="stop",
            vector=vector,
            cached_tokens=self.sequence.cached or 0,
            times=self.times(),
        )

    def _vector(self, row: Array) -> Array:
        if self._sum is None:
            return np.array(row, np.float32)
        mean = self.pooling.kind == "mean"
        return (self._sum / self._taken if mean else self._sum).astype(np.float32)


def unit(vector: Array) -> Array:
    """The vector with length 1."""
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def probabilities(scores: Array, activation: str) -> Array:
    """Those of a classifier's labels by its scores."""
    return ACTIVATIONS[activation](scores)


def _softmax(scores: Array) -> Array:
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "softmax": _softmax,
    "sigmoid": lambda scores: 0.5 * (1.0 + np.tanh(0.5 * scores)),
    "none": lambda scores: scores,
}
