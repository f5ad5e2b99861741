"""Sampling: what a request may ask for, and the token that it gets."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches

import numpy as np

from .errors import RequestError
from .tensors import Array

_MAX_SEED = (1 << 63) - 1
_BLOCK = 1024  # tokens whose weights are added up at a time; up to so many in double precision
_GROUP = 64  # logits whose maximum stands for them while the greatest are looked for


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How a request's tokens are chosen and when they end; names and defaults are vLLM's.

    Temperature 0 is greedy. Order: temperature, min_p, top_k, top_p. `top_k` 0 or -1 is off.
    `max_tokens` None is as many as the context holds. `stop` strings end the text before their
    first occurrence.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] | list[str] | str | None = None
    stop_token_ids: tuple[int, ...] | list[int] | None = None
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        _within("temperature", self.temperature, 0.0, float("inf"))
        _within("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0.0:
            raise RequestError("top_p=0.0: wanted a number above 0 and up to 1")
        _within("min_p", self.min_p, 0.0, 1.0)
        _integer("top_k", self.top_k, -1)
        _integer("min_tokens", self.min_tokens, 0)
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 1)
            if self.min_tokens > self.max_tokens:
                raise RequestError(
                    f"min_tokens={self.min_tokens}: wanted max_tokens={self.max_tokens} or less"
                )
        if self.seed is not None:
            _integer("seed", self.seed, -_MAX_SEED - 1, _MAX_SEED)
        _strings("stop", self.stop_strings)
        for token in self.stop_token_ids or ():
            _integer("stop_token_ids", token, 0)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings, however they were given."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @staticmethod
    def parse(values: Mapping[str, object]) -> "SamplingParams":
        """Parameters from a mapping; a name that is not known is an error with the nearest one."""
        known = [f.name for f in fields(SamplingParams)]
        for name in values:
            if name not in known:
                near = get_close_matches(name, known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ";"
                raise RequestError(
                    f"no sampling parameter {name!r}{hint} known: {', '.join(known)}"
                )
        return SamplingParams(**values)  # pyright: ignore[reportArgumentType]


def _within(name: str, value: object, least: float, greatest: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise RequestError(f"{name}={value!r}: wanted a number")
    if not least <= value <= greatest or value == float("inf"):
        upper = "or more" if greatest == float("inf") else f"to {greatest}"
        raise RequestError(f"{name}={value!r}: wanted a number, {least} {upper}")


def _integer(name: str, value: object, least: int, greatest: int | None = None) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise RequestError(f"{name}={value!r}: wanted an integer")
    if value < least or (greatest is not None and value > greatest):
        upper = "or more" if greatest is None else f"to {greatest}"
        raise RequestError(f"{name}={value}: wanted an integer, {least} {upper}")


def _strings(name: str, values: Iterable[object]) -> None:
    for value in values:
        if not isinstance(value, str) or not value:
            raise RequestError(f"{name}: wanted strings that are not empty, given {value!r}")


class Sampler:
    """Chooses the tokens of one request. Its generator is its own: other requests change nothing.

    `ends` are the tokens that end the request; they are kept out until `min_tokens` are there.
    """

    def __init__(self, params: SamplingParams, ends: Iterable[int]) -> None:
        self.params = params
        self._ends = sorted(ends)
        seed = params.seed if params.seed is not None else int.from_bytes(os.urandom(8), "little")
        self._generator = np.random.Generator(np.random.PCG64(seed % (1 << 64)))

    def choose(self, logits: Array, greedy: int, generated: int) -> int:
        """The next token from a row of logits f32[V] whose argmax is `greedy`.

        `generated` counts the tokens so far. Raises `RequestError` where the logits are not finite.
        """
        if not np.isfinite(logits[greedy]):
            raise RequestError(f"the model gave {logits[greedy]} as its greatest logit")
        params = self.params
        if generated < params.min_tokens and self._ends:
            logits = logits.copy()
            logits[self._ends] = -np.inf
            greedy = int(logits.argmax())
        if params.temperature == 0.0 or params.top_k == 1:
            return greedy
        return self._draw(logits)

    def _draw(self, logits: Array) -> int:
        params, best = self.params, float(logits.max())
        tokens = None
        if params.min_p > 0.0:
            tokens = np.flatnonzero(logits >= best + params.temperature * np.log(params.min_p))
        if params.top_k > 0:
            tokens = greatest(logits, params.top_k, tokens)
        if tokens is None and params.top_p < 1.0:
            tokens, weights = nucleus(logits, best, params.temperature, params.top_p)
        elif tokens is not None:
            weights = _weights(logits[tokens], best, params.temperature)
            if params.top_p < 1.0:
                kept = _most_likely(weights, params.top_p * float(weights.sum()))
                tokens, weights = tokens[kept], weights[kept]
        else:
            return self._draw_of_all(_weights(logits, best, params.temperature))
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
    wanted = top_p * float(_weights(logits, best, temperature).sum(dtype=np.float64))
    count = _GROUP
    while True:
        tokens = greatest(logits, count)
        weights = _weights(logits[tokens], best, temperature)
        if float(weights.sum(dtype=np.float64)) >= wanted or len(tokens) == logits.shape[0]:
            kept = _most_likely(weights, wanted)
            return tokens[kept], weights[kept]
        count *= 16


def _weights(logits: Array, best: float, temperature: float) -> Array:
    # Shifted first, so that a small temperature cannot overflow; double only where few are left.
    precise = logits.astype(np.float64 if logits.shape[0] <= _BLOCK else np.float32)
    return np.exp((precise - best) / temperature)


def _most_likely(weights: Array, wanted: float) -> Array:
    """The places of the fewest greatest weights whose sum reaches `wanted`."""
    order = np.argsort(-weights, kind="stable")
    sums = np.cumsum(weights[order], dtype=np.float64)
    return order[: int(np.searchsorted(sums, wanted)) + 1]


def _pick(weights: Array, share: float) -> int:
    """The place at `share` (0 to 1) of the weights laid end to end; never one without weight."""
    ladder = np.cumsum(weights, dtype=np.float64)
    place = int(np.searchsorted(ladder, share * ladder[-1], side="right"))
    return place if place < ladder.shape[0] else int(np.flatnonzero(weights)[-1])
