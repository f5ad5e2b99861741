"""Beam search: the likeliest continuations of a prompt, found step by step.

Each step asks for one token after every beam, all in one batch; what the beams share comes from
the prefix cache. `BeamSearch` knows the beams, and whoever drives it asks an engine.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from .errors import RequestError
from .front import Front
from .params import SamplingParams
from .results import Completion, FinishReason, TokenLogprobs


@dataclass(frozen=True, kw_only=True)
class BeamSearchParams:
    """Names are vLLM's. A beam's score is the sum of its log probabilities by length ** penalty.

    `max_tokens` None is as many as the context holds. With `logprobs` each token comes with those
    of the likeliest ones beside it.
    """

    beam_width: int
    max_tokens: int | None
    ignore_eos: bool = False
    length_penalty: float = 1.0
    skip_special_tokens: bool = True
    logprobs: int | None = None

    def __post_init__(self) -> None:
        for name in ("beam_width", "max_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise RequestError(f"{name}={value}: wanted an integer, 1 or more")

    @property
    def n(self) -> int:
        """How many sequences run at once, and come out."""
        return self.beam_width


@dataclass(frozen=True)
class Beam:
    """A continuation: its tokens, what is known of each, and the sum of their log probabilities."""

    tokens: tuple[int, ...] = ()
    logprob: float = 0.0
    reason: FinishReason = "length"
    entries: tuple[TokenLogprobs, ...] = ()

    def score(self, penalty: float) -> float:
        """The sum of log probabilities by length; an end token does not count as length."""
        length = len(self.tokens) - (self.reason == "stop")
        return self.logprob / max(1, length) ** penalty

    @property
    def shown(self) -> tuple[int, ...]:
        """The tokens of its text: not the one that ended it."""
        return self.tokens[:-1] if self.reason == "stop" else self.tokens


class BeamSearch:
    """The beams of one prompt. `prompts` are to be continued by one token each, with the log
    probabilities that `asked` wants; `take` gets them; there are none once the search is over.
    """

    def __init__(
        self,
        start: Sequence[int],
        params: BeamSearchParams,
        *,
        ends: Collection[int],
        max_context: int,
        vocabulary: int,
    ) -> None:
        self.start, self.params = tuple(start), params
        self._ends = frozenset() if params.ignore_eos else frozenset(ends)
        room = max_context - len(self.start)
        self._left = room if params.max_tokens is None else min(params.max_tokens, room)
        self._beams, self._complete = [Beam()], list[Beam]()
        # Twice as many as beams, as half of them may be ends.
        self._rivals = min(2 * params.beam_width, vocabulary)
        count = max(self._rivals, min(params.logprobs or 0, vocabulary))
        self.asked = SamplingParams(
            temperature=0.0, max_tokens=1, logprobs=count, detokenize=False, ignore_eos=True
        )

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        """The start with each beam; empty once the search is over."""
        return [(*self.start, *b.tokens) for b in self._beams] if self._left else []

    def take(self, found: Sequence[TokenLogprobs]) -> None:
        """The log probabilities after each of `prompts`."""
        grown = [
            self._grown(beam, token, entries)
            for beam, entries in zip(self._beams, found, strict=True)
            for token in sorted(entries, key=lambda t: entries[t].rank)[: self._rivals]
        ]
        self._complete += [beam for beam in grown if beam.reason == "stop"]
        self._beams = self._best([beam for beam in grown if beam.reason != "stop"])
        self._left = self._left - 1 if self._beams else 0

    def _grown(self, beam: Beam, token: int, entries: TokenLogprobs) -> Beam:
        return Beam(
            (*beam.tokens, token),
            beam.logprob + entries[token].logprob,
            "stop" if token in self._ends else "length",
            (*beam.entries, entries) if self.params.logprobs is not None else (),
        )

    def best(self) -> list[Beam]:
        """The best `beam_width` continuations, the best first."""
        return self._best([*self._complete, *self._beams])

    def _best(self, beams: list[Beam]) -> list[Beam]:
        order = sorted(beams, key=lambda b: (-b.score(self.params.length_penalty), b.tokens))
        return order[: self.params.beam_width]


def beam_search(
    front: Front, prompt: str | Sequence[int], params: BeamSearchParams
) -> tuple[Completion, ...]:
    """The best `beam_width` continuations, the best first."""
    engine = front.engine
    search = BeamSearch(
        engine.prompt_ids(prompt),
        params,
        ends=engine.ends,
        max_context=engine.max_context,
        vocabulary=engine.runner.vocabulary,
    )
    while prompts := search.prompts:
        search.take(_look(front, prompts, search.asked))
    return tuple(
        _completion(front, number, search, beam) for number, beam in enumerate(search.best())
    )


def _look(
    front: Front, prompts: Sequence[tuple[int, ...]], asked: SamplingParams
) -> list[TokenLogprobs]:
    names: list[str] = []
    try:
        for prompt in prompts:
            names.append(front.submit(prompt, asked))
        return [_first(front.complete(name).logprobs) for name in names]
    finally:
        for name in names:
            front.close(name)


def _first(logprobs: tuple[TokenLogprobs, ...] | None) -> TokenLogprobs:
    assert logprobs, "log probabilities were asked for"
    return logprobs[0]


def _completion(front: Front, number: int, search: BeamSearch, beam: Beam) -> Completion:
    text, skip = front.engine.text, search.params.skip_special_tokens
    return Completion(
        beam.tokens,
        text.decode(beam.shown, skip_special_tokens=skip) if text else "",
        beam.reason,
        search.start,
        index=number,
        logprobs=beam.entries or None,
        cumulative_logprob=beam.logprob,
    )
