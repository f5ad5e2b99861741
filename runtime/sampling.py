"""Sampling: the token that a request gets from a row of logits."""

import math
import os
from collections.abc import Iterable, Sequence

import numpy as np

from .adjust import Adjuster, Constraint, Words
from .errors import LogitsError
from .params import SamplingParams, StructuredOutputsParams
from .tensors import Array

__all__ = ["Sampler", "SamplingParams", "StructuredOutputsParams", "greatest", "nucleus", "typical"]

_BLOCK = 1024  # tokens whose weights are added up at a time; up to so many in double precision
_COLDEST, _HOTTEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
_ALIKE = 18  # bits of a float that are let go of: 5 of its mantissa stay, so 3 percent
_GROUP = 64  # logits whose maximum stands for them while the greatest are looked for


class Sampler:
    """Chooses the tokens of one sequence. Its generator is its own: others change nothing.

    `ends` are the tokens that end the sequence; the rest is as in `Adjuster`.
    """

    def __init__(
        self,
        params: SamplingParams,
        ends: Iterable[int],
        prompt: Sequence[int] = (),
        bad_words: Words = (),
        constraint: Constraint | None = None,
    ) -> None:
        self.params = params
        self._adjuster = Adjuster(params, ends, prompt, bad_words, constraint)
        seed = params.seed if params.seed is not None else int.from_bytes(os.urandom(8), "little")
        self._generator = np.random.Generator(np.random.PCG64(seed % (1 << 64)))

    @property
    def complete(self) -> bool:
        """Whether nothing may follow the last token."""
        constraint = self._adjuster.constraint
        return constraint is not None and constraint.complete

    @property
    def _is_greedy(self) -> bool:
        return self.params.temperature == 0.0 or self.params.top_k == 1

    def reads_logits(self, generated: int) -> bool:
        """Whether the next token is not just the argmax, `generated` tokens being there."""
        return not self._is_greedy or self._adjuster.changes(generated)

    def choose(self, logits: Array, greedy: int, generated: int) -> int:
        """The next token from a row of logits f32[V] whose argmax is `greedy`.

        `generated` counts the tokens so far. Raises `LogitsError` where the logits are not finite,
        which a `greedy` below 0 says too.
        """
        if greedy < 0:
            raise LogitsError("the model gave a NaN or an infinity as its greatest logit")
        if not math.isfinite(logits[greedy]):
            raise LogitsError(f"the model gave {logits[greedy]} as its greatest logit")
        if self._adjuster.changes(generated):
            logits = self._adjuster.apply(logits, generated)
            greedy = int(logits.argmax())
        token = greedy if self._is_greedy else self._draw(logits)
        self._adjuster.accept(token)
        return token

    def _draw(self, logits: Array) -> int:
        params, best = self.params, float(logits.max())
        # What single precision rounds to 0 or to infinity divides nothing.
        temperature = min(max(params.temperature, _COLDEST), _HOTTEST)
        tokens = None
        if params.min_p > 0.0:
            tokens = np.flatnonzero(logits >= best + temperature * np.log(params.min_p))
        if params.top_k > 0:
            tokens = greatest(logits, params.top_k, tokens)
        if tokens is None and params.top_p < 1.0:
            tokens, weights = nucleus(logits, best, temperature, params.top_p)
        elif tokens is not None:
            weights = _weights(logits[tokens], best, temperature)
            if params.top_p < 1.0:
                kept = _most_likely(weights, params.top_p * float(weights.sum()))
                tokens, weights = tokens[kept], weights[kept]
        elif params.typical_p < 1.0:
            tokens = np.arange(logits.shape[0])
            weights = _weights(logits, best, temperature)
        else:
            return self._draw_of_all(_weights(logits, best, temperature))
        if params.typical_p < 1.0:
            kept = typical(weights, params.typical_p)
            tokens, weights = tokens[kept], weights[kept]
        return int(tokens[_pick(weights, self._generator.random())])

    def _draw_of_all(self, weights: Array) -> int:
        """Choose among the whole vocabulary: a block of it first, then a token of the block."""
        starts = np.arange(0, weights.shape[0], _BLOCK)
        sums = np.add.reduceat(weights, starts)
        start = int(starts[_pick(sums, self._generator.random())])
        return start + _pick(weights[start : start + _BLOCK], self._generator.random())


def greatest(logits: Array, count: int, among: Array | None = None) -> Array:
    """The ids of the `count` greatest logits, in the order of ids; of equal ones the first.

    Without sorting: the count-th greatest of many groups' maxima bounds what can be among them.
    """
    values = logits if among is None else logits[among]
    if count >= values.shape[0]:
        return np.arange(values.shape[0]) if among is None else among
    groups = np.maximum.reduceat(values, np.arange(0, values.shape[0], _GROUP))
    bound = -np.inf if count > groups.shape[0] else np.partition(groups, -count)[-count]
    likely = np.flatnonzero(values >= bound)
    kept = likely[np.sort(np.argsort(-values[likely], kind="stable")[:count])]
    return kept if among is None else among[kept]


def nucleus(logits: Array, best: float, temperature: float, top_p: float) -> tuple[Array, Array]:
    """The fewest most likely tokens whose share of all reaches `top_p`, and their weights."""
    every = _weights(logits, best, temperature)
    total = float(every.sum(dtype=np.float64))
    wanted = top_p * total
    if wanted <= _GROUP:  # no weight is more than 1
        tokens = greatest(logits, _GROUP)
        weights = _weights(logits[tokens], best, temperature)
        if float(weights.sum(dtype=np.float64)) >= wanted:
            kept = _most_likely(weights, wanted)
            return tokens[kept], weights[kept]
    # All that are less than this together have less than what is left out.
    likely = np.flatnonzero(every >= (total - wanted) / every.shape[0])
    weights = every[likely]
    find = _most_likely if weights.shape[0] <= _BLOCK else _most_likely_of_many
    kept = find(weights, wanted)
    return likely[kept], weights[kept]


def typical(weights: Array, share: float) -> Array:
    """The places of the fewest weights nearest to the expected surprise that reach `share`.

    Meister et al., Locally Typical Sampling (2023), equation 8: by |-log p - entropy|.
    """
    likely = np.flatnonzero(weights)
    shares = weights[likely].astype(np.float64) / weights.sum(dtype=np.float64)
    surprise = -np.log(shares)
    distance = np.abs(surprise - (shares * surprise).sum())
    order = np.argsort(distance, kind="stable")
    reached = int(np.searchsorted(np.cumsum(shares[order]), share))
    return likely[order[: reached + 1]]


def _weights(logits: Array, best: float, temperature: float) -> Array:
    # Shifted first, so that the best one has weight 1; double only where few are left.
    weights = logits.astype(np.float64 if logits.shape[0] <= _BLOCK else np.float32)
    weights -= best
    with np.errstate(over="ignore"):  # what is so far below the best one has no weight
        weights /= temperature
    return np.exp(weights, out=weights)


def _most_likely(weights: Array, wanted: float) -> Array:
    """The places of the fewest greatest weights whose sum reaches `wanted`."""
    order = np.argsort(-weights, kind="stable")
    sums = np.cumsum(weights[order], dtype=np.float64)
    return order[: int(np.searchsorted(sums, wanted)) + 1]


def _most_likely_of_many(weights: Array, wanted: float) -> Array:
    """The same, of many weights f32 that are not sorted for it: classes of weights that are alike
    are added up until their sum is reached, and the weights of the last class alone are sorted.
    """
    classes = weights.view(np.uint32) >> _ALIKE  # floats that are positive are in the order of bits
    sums = np.cumsum(np.bincount(classes, weights)[::-1])
    reached = min(int(np.searchsorted(sums, wanted)), sums.shape[0] - 1)
    last = sums.shape[0] - 1 - reached
    above = np.flatnonzero(classes > last)
    alike = np.flatnonzero(classes == last)
    rest = wanted - (float(sums[reached - 1]) if reached else 0.0)
    return np.concatenate([above, alike[_most_likely(weights[alike], rest)]])


def _pick(weights: Array, share: float) -> int:
    """The place at `share` (0 to 1) of the weights laid end to end; never one without weight."""
    ladder = np.cumsum(weights, dtype=np.float64)
    place = int(np.searchsorted(ladder, share * ladder[-1], side="right"))
    return place if place < ladder.shape[0] else int(np.flatnonzero(weights)[-1])
