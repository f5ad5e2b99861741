"""One sequence of a request on its way: chooses its tokens, shows its text, sees its end."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from .params import SamplingParams
from .results import Delta, FinishReason, Times
from .sampling import Sampler
from .sequence import Sequence
from .tensors import Array
from .text import TextStream


@dataclass(eq=False)
class Request:
    """What a caller asked for, and its sequences that still run.

    `tracks` are those, `fresh` makes one by index; the first makes the others when its prompt has
    been computed.
    """

    name: str
    params: SamplingParams
    prompt: tuple[int, ...]
    fresh: Callable[[int], "Track"]
    tracks: list["Track"] = field(default_factory=list["Track"])
    forked: bool = False
    arrived: float = field(default_factory=time.monotonic)
    started: float | None = None


@dataclass(eq=False)
class Track:
    """One sequence of a request, its sampler and its text."""

    request: Request
    index: int
    sequence: Sequence
    sampler: Sampler
    ends: frozenset[int]
    stream: TextStream | None
    first_token: float | None = None

    def extend(self, greedy: int, logits: Array) -> Delta:
        """Choose the next token from a row of logits whose argmax is `greedy`."""
        request, sequence = self.request, self.sequence
        token = self.sampler.choose(logits, greedy, sequence.generated)
        sequence.tokens.append(token)
        if self.first_token is None:
            self.first_token = time.monotonic()
        shown, reason, stop_reason = self._finish(token)
        return Delta(
            request.name,
            (token,),
            shown,
            reason,
            index=self.index,
            cached_tokens=request.tracks[0].sequence.cached or 0,
            stop_reason=stop_reason,
            times=self.times() if reason else None,
        )

    def times(self) -> Times:
        """The times of a sequence that ends now."""
        request = self.request
        return Times(request.arrived, request.started, self.first_token, time.monotonic())

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
