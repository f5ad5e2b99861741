"""What a request may ask of sampling: names, defaults and ranges are vLLM's."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from operator import index
from typing import Any

from .errors import RequestError

_MAX_SEED = (1 << 63) - 1
_KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
_INFINITY = float("inf")

# Parameters that users of other servers may send, and that this one does not have.
UNSUPPORTED = frozenset(
    {
        "best_of",
        "extra_args",
        "flat_logprobs",
        "logits_processors",
        "logprob_token_ids",
        "output_kind",
        "repetition_detection",
        "spaces_between_special_tokens",
        "stream_interval",
    }
)


@dataclass(frozen=True, kw_only=True)
class StructuredOutputsParams:
    """What the output must be: exactly one kind of grammar; names are vLLM's.

    `json` is a schema, as text or as an object; `grammar` is Lark or GBNF; `structural_tag` is JSON
    with `triggers` and `structures` of `begin`, `schema` and `end`.
    """

    json: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: tuple[str, ...] | list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | None = None
    disable_any_whitespace: bool = False
    whitespace_pattern: str | None = None

    def __post_init__(self) -> None:
        if len(self._kinds()) != 1:
            given = ", ".join(self._kinds()) or "nothing"
            raise RequestError(f"structured_outputs: given {given}; wanted one of {_listed()}")
        for name in ("regex", "grammar", "structural_tag", "whitespace_pattern"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise RequestError(f"structured_outputs.{name}: wanted a string, given {value!r}")
        if self.choice is not None:
            if isinstance(self.choice, str) or not self.choice:
                raise RequestError("structured_outputs.choice: wanted a list of strings")
            _strings("structured_outputs.choice", self.choice)

    @property
    def kind(self) -> str:
        """The name of the kind that is given."""
        return self._kinds()[0]

    def _kinds(self) -> list[str]:
        return [kind for kind in _KINDS if getattr(self, kind) not in (None, False)]

    @staticmethod
    def parse(values: Mapping[str, Any]) -> "StructuredOutputsParams":
        """Parameters from a mapping; a name that is not known is an error."""
        known = [f.name for f in fields(StructuredOutputsParams)]
        for name in values:
            if name not in known:
                listed = ", ".join(known)
                raise RequestError(f"no structured_outputs.{name}; known: {listed}")
        return StructuredOutputsParams(**values)


def _listed() -> str:
    return f"{', '.join(_KINDS[:-1])} and {_KINDS[-1]}"


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How a request's tokens are chosen and when they end; names and defaults are vLLM's.

    Temperature 0 is greedy. Order: allowed and bad tokens, min_tokens, logit_bias, penalties,
    temperature, min_p, top_k, top_p, typical_p. `top_k` 0 or -1 is off. Repetition counts prompt
    and output, presence and frequency the output. `n` sequences have the seeds seed, seed + 1, ...
    `shown_special_ids` are shown though special tokens are skipped. `max_tokens` None is as many
    as the context holds. `stop` strings end the text before their
    first occurrence. `logprobs` -1 is the whole vocabulary. `structured_outputs` is a grammar.
    Behind `thinking_token_budget` tokens of thoughts these are ended.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] | list[str] | str | None = None
    stop_token_ids: tuple[int, ...] | list[int] | None = None
    include_stop_str_in_output: bool = False
    detokenize: bool = True
    skip_special_tokens: bool = True
    shown_special_ids: tuple[int, ...] | list[int] | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: tuple[int, ...] | list[int] | None = None
    bad_words: tuple[str, ...] | list[str] | None = None
    skip_reading_prefix_cache: bool = False
    structured_outputs: StructuredOutputsParams | None = None
    thinking_token_budget: int | None = None

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_lengths()
        self._check_tokens()
        wanted = self.structured_outputs
        if wanted is not None and not isinstance(wanted, StructuredOutputsParams):
            raise RequestError(f"structured_outputs: wanted an object, given {wanted!r}")
        if self.stop_strings and not self.detokenize:
            raise RequestError("stop: wanted with detokenize=True, which shows the text")

    def _check_numbers(self) -> None:
        _integer("n", self.n, 1)
        _within("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _share("repetition_penalty", self.repetition_penalty, _INFINITY)
        _within("temperature", self.temperature, 0.0, _INFINITY)
        _share("top_p", self.top_p, 1.0)
        _share("typical_p", self.typical_p, 1.0)
        _within("min_p", self.min_p, 0.0, 1.0)
        _integer("top_k", self.top_k, -1)
        if self.thinking_token_budget is not None:
            _integer("thinking_token_budget", self.thinking_token_budget, 0)
        if self.seed is not None:
            _integer("seed", self.seed, -_MAX_SEED - 1, _MAX_SEED)

    def _check_lengths(self) -> None:
        _integer("min_tokens", self.min_tokens, 0)
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 1)
            if self.min_tokens > self.max_tokens:
                raise RequestError(
                    f"min_tokens={self.min_tokens}: wanted max_tokens={self.max_tokens} or less"
                )
        for name in ("logprobs", "prompt_logprobs"):
            if (value := getattr(self, name)) is not None:
                _integer(name, value, -1)

    def _check_tokens(self) -> None:
        _strings("stop", self.stop_strings)
        _strings("bad_words", self.bad_words or ())
        for token in self.stop_token_ids or ():
            _integer("stop_token_ids", token, 0)
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise RequestError("allowed_token_ids=[]: wanted at least one token, or None for all")
        for token in self.allowed_token_ids or ():
            _integer("allowed_token_ids", token, 0)
        for token, bias in (self.logit_bias or {}).items():
            _integer("logit_bias", token, 0)
            _within(f"logit_bias[{token}]", bias, -100.0, 100.0)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings, however they were given."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def of_sequence(self, index: int) -> "SamplingParams":
        """The parameters of one of `n` sequences: each has a seed of its own."""
        if self.seed is None or index == 0:
            return self
        return replace(self, seed=(self.seed + index + _MAX_SEED + 1) % (1 << 64) - _MAX_SEED - 1)

    def check_vocabulary(self, size: int) -> None:
        """Raise `RequestError` for a token that a vocabulary of this size does not have."""
        for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
            for token in getattr(self, name) or ():
                _integer(name, token, 0, size - 1)
        for name in ("logprobs", "prompt_logprobs"):
            if (value := getattr(self, name)) is not None:
                _integer(name, value, -1, size)

    @staticmethod
    def parse(values: Mapping[str, object]) -> "SamplingParams":
        """Parameters from a mapping; a name that is not known is an error with the nearest one."""
        known = [f.name for f in fields(SamplingParams)]
        for name in values:
            if name in known:
                continue
            if name in UNSUPPORTED:
                raise RequestError(f"sampling parameter {name!r} is not supported")
            near = get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ";"
            raise RequestError(f"no sampling parameter {name!r}{hint} known: {', '.join(known)}")
        if isinstance(wanted := values.get("structured_outputs"), Mapping):
            values = {**values, "structured_outputs": StructuredOutputsParams.parse(wanted)}
        return SamplingParams(**values)  # pyright: ignore[reportArgumentType]


def _within(name: str, value: object, least: float, greatest: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise RequestError(f"{name}={value!r}: wanted a number")
    if not least <= value <= greatest or value == _INFINITY:
        upper = "or more" if greatest == _INFINITY else f"to {greatest}"
        raise RequestError(f"{name}={value!r}: wanted a number, {least} {upper}")


def _share(name: str, value: float, greatest: float) -> None:
    """A number that must not be 0."""
    _within(name, value, 0.0, greatest)
    if value == 0.0:
        upper = "" if greatest == _INFINITY else f" and up to {greatest}"
        raise RequestError(f"{name}=0.0: wanted a number above 0{upper}")


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


def checked_token(token: object, vocabulary: int) -> int:
    """The token id; raises RequestError for what is none of a vocabulary's."""
    try:
        number = index(token)  # pyright: ignore[reportArgumentType]
    except TypeError:
        raise RequestError(f"a prompt is text or token ids, given {token!r}") from None
    if not 0 <= number < vocabulary:
        raise RequestError(f"token id {number}: wanted 0 to {vocabulary - 1}")
    return number
