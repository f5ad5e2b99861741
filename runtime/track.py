"""One sequence of a request on its way: chooses its tokens, shows its text, sees its end."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

from .logprobs import Decode, token_logprobs
from .params import SamplingParams
from .results import Delta, FinishReason, Times, TokenLogprobs
from .sampling import Sampler
from .sequence import Sequence
from .tensors import Array
from .text import TextStream


@dataclass(eq=False)
class Request:
    """What a caller asked for, and its sequences that still run.

    `tracks` are those, `fresh` makes one by index; the first makes the others when its prompt has
    been computed. `prompt_logprobs` has a place for each prompt token where they were asked for.
    """

    name: str
    params: SamplingParams
    prompt: tuple[int, ...]
    fresh: Callable[[int], "Track"]
    tracks: list["Track"] = field(default_factory=list["Track"])
    decode: Decode = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    forked: bool = False
    arrived: float = field(default_factory=time.monotonic)
    started: float | None = None


@dataclass(eq=False)
class Track(ABC):
    """One sequence of a request, and what becomes of its rows."""

    request: Request
    index: int
    sequence: Sequence
    first_token: float | None = field(default=None, init=False)

    @property
    @abstractmethod
    def reads_logits(self) -> bool:
        """Whether more than their argmax is wanted of its next rows of logits."""

    @abstractmethod
    def note_prompt(self, begin: int, logits: Array) -> None:
        """Take rows of prompt tokens, the first of which stands at the position `begin`; rows come
        again where a prompt is computed again.
        """

    @abstractmethod
    def extend(self, greedy: int, logits: Array) -> Delta:
        """What comes of the row behind all that is computed, whose argmax is `greedy`."""

    def times(self) -> Times:
        """The times of a sequence that ends now."""
        request = self.request
        return Times(request.arrived, request.started, self.first_token, time.monotonic())


@dataclass(eq=False)
class TokenTrack(Track):
    """A sequence that gets tokens: its sampler and its text."""

    sampler: Sampler
    ends: frozenset[int]
    stream: TextStream | None

    @property
    def reads_logits(self) -> bool:
        """Whether more than their argmax is wanted of its next rows of logits."""
        params = self.request.params
        scored = params.logprobs is not None or params.prompt_logprobs is not None
        return scored or self.sampler.reads_logits(self.sequence.generated)

    def extend(self, greedy: int, logits: Array) -> Delta:
        """Choose the next token from a row of logits whose argmax is `greedy`."""
        request, sequence = self.request, self.sequence
        token = self.sampler.choose(logits, greedy, sequence.generated)
        sequence.tokens.append(token)
        if self.first_token is None:
            self.first_token = time.monotonic()
        shown, reason, stop_reason = self._finish(token)
        count, prompt = request.params.logprobs, request.prompt_logprobs
        first = sequence.generated == 1
        return Delta(
            request.name,
            (token,),
            shown,
            reason,
            index=self.index,
            logprobs=None if count is None else (self._score(logits, token, count),),
            prompt_logprobs=tuple(prompt) if prompt is not None and first else None,
            cached_tokens=request.tracks[0].sequence.cached or 0,
            stop_reason=stop_reason,
            times=self.times() if reason else None,
        )

    def _score(self, logits: Array, token: int, count: int) -> TokenLogprobs:
        return token_logprobs(logits, token, count, self.request.decode)

    def note_prompt(self, begin: int, logits: Array) -> None:
        """Keep the log probabilities of prompt tokens; `begin` is the position of the first row.

        A row speaks of the token after its own. Rows come again where a prompt is computed again.
        """
        request = self.request
        scores, count = request.prompt_logprobs, request.params.prompt_logprobs
        if scores is None or count is None:
            return
        for row, place in zip(logits, range(begin + 1, len(scores)), strict=False):
            scores[place] = self._score(row, request.prompt[place], count)

    def _finish(self, token: int) -> tuple[str, FinishReason | None, int | str | None]:
        """The text that may be shown after a token, why the sequence ends there, and by what."""
        params, stream, generated = self.request.params, self.stream, self.sequence.generated
        may_stop = generated >= params.min_tokens
        if token in self.ends and may_stop:
            shown = stream.push(token) if stream and params.include_stop_str_in_output else ""
            asked = token if token in (params.stop_token_ids or ()) else None
            return shown + (stream.finish() if stream else ""), "stop", asked
        shown = stream.push(token, may_stop=may_stop) if stream else ""
        if stream and stream.stopped:
            return shown, "stop", stream.stop
        complete = self.sampler.complete
        if generated < self.sequence.limit and not complete:
            return shown, None, None
        shown += stream.finish() if stream else ""
        if stream and stream.stopped:
            return shown, "stop", stream.stop
        return shown, "stop" if complete else "length", None
