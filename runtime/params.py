"""What a request may ask of sampling: names, defaults and ranges are vLLM's."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches

from .errors import RequestError

_MAX_SEED = (1 << 63) - 1


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How a request's tokens are chosen and when they end; names and defaults are vLLM's.

    Temperature 0 is greedy. Order: temperature, min_p, top_k, top_p. `top_k` 0 or -1 is off.
    `max_tokens` None is as many as the context holds. `stop` strings end the text before their
    first occurrence.
    """

    n: int = 1
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
        _integer("n", self.n, 1)
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

    def of_sequence(self, index: int) -> "SamplingParams":
        """The parameters of one of `n` sequences: each has a seed of its own."""
        return self if self.seed is None else replace(self, seed=self.seed + index)

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
