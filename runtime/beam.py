"""Beam search: the likeliest continuations of a prompt, found step by step.

Each step asks for one token after every beam, all in one batch; what the beams share comes from
the prefix cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .errors import RequestError
from .front import Front
from .params import SamplingParams
from .results import Completion, FinishReason, TokenLogprobs


@dataclass(frozen=True, kw_only=True)
class BeamSearchParams:
    """Names are vLLM's. A beam's score is the sum of its log probabilities by length ** penalty."""

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    length_penalty: float = 1.0
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        for name in ("beam_width", "max_tokens"):
            if (value := getattr(self, name)) < 1:
                raise RequestError(f"{name}={value}: wanted an integer, 1 or more")


@dataclass(frozen=True)
class _Beam:
    tokens: tuple[int, ...] = ()
    logprob: float = 0.0
    reason: FinishReason = "length"

    def score(self, penalty: float) -> float:
        """The sum of log probabilities by length; an end token does not count as length."""
        length = len(self.tokens) - (self.reason == "stop")
        return self.logprob / max(1, length) ** penalty


def beam_search(
    front: Front, prompt: str | Sequence[int], params: BeamSearchParams
) -> tuple[Completion, ...]:
    """The best `beam_width` continuations, the best first."""
    engine = front.engine
    start = tuple(engine.prompt_ids(prompt))
    ends = frozenset() if params.ignore_eos else engine.ends
    steps = min(params.max_tokens, engine.runner.max_context - len(start))
    beams, complete = [_Beam()], list[_Beam]()
    for _ in range(steps):
        grown = [
            _Beam(
                (*beam.tokens, token), beam.logprob + logprob, "stop" if token in ends else "length"
            )
            for beam, found in zip(beams, _look(front, start, beams, params), strict=True)
            for token, logprob in found
        ]
        complete += [beam for beam in grown if beam.reason == "stop"]
        beams = _best([beam for beam in grown if beam.reason != "stop"], params)
        if not beams:
            break
    return tuple(
        _completion(front, number, start, beam, params)
        for number, beam in enumerate(_best([*complete, *beams], params))
    )


def _best(beams: list[_Beam], params: BeamSearchParams) -> list[_Beam]:
    order = sorted(beams, key=lambda b: (-b.score(params.length_penalty), b.tokens))
    return order[: params.beam_width]


def _look(
    front: Front, start: tuple[int, ...], beams: Sequence[_Beam], params: BeamSearchParams
) -> list[list[tuple[int, float]]]:
    """The likeliest tokens after each beam: twice as many as beams, as half of them may be ends."""
    count = min(2 * params.beam_width, front.engine.runner.vocabulary)
    asked = SamplingParams(temperature=0.0, max_tokens=1, logprobs=count, detokenize=False)
    names: list[str] = []
    try:
        for beam in beams:
            names.append(front.submit((*start, *beam.tokens), asked))
        return [_pairs(front.complete(name).logprobs) for name in names]
    finally:
        for name in names:
            front.close(name)


def _pairs(logprobs: tuple[TokenLogprobs, ...] | None) -> list[tuple[int, float]]:
    assert logprobs, "log probabilities were asked for"
    return [(token, entry.logprob) for token, entry in logprobs[0].items()]


def _completion(
    front: Front, number: int, start: tuple[int, ...], beam: _Beam, params: BeamSearchParams
) -> Completion:
    shown = beam.tokens[:-1] if beam.reason == "stop" else beam.tokens
    text = front.engine.text
    return Completion(
        beam.tokens,
        text.decode(shown, skip_special_tokens=params.skip_special_tokens) if text else "",
        beam.reason,
        start,
        index=number,
        cumulative_logprob=beam.logprob,
    )
