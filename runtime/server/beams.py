"""Beam search for a request: every beam's next token is asked of the engine, all at once."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from ..beam import Beam, BeamSearch, BeamSearchParams
from ..engine import Delta, TokenLogprobs
from ..errors import RequestError
from ..sampling import SamplingParams
from ..text import TextStream
from .errors import ApiError, failed, refused, unsupported
from .fields import Generation, Sampling
from .front import EngineFront, Record
from .generation import Choice, text_starts, usage_of
from .models import ServedModel

# What a search may be asked for; all else is about sampling.
_HONOURED = {"n", "temperature", "ignore_eos", "skip_special_tokens", "logprobs", "max_tokens"}
_HONOURED |= {"shown_special_ids"}


def beam_params(body: Generation, extra: Mapping[str, Any]) -> BeamSearchParams | None:
    """The search that a body asks for; None where it samples.

    `extra` are the parameters that the endpoint names otherwise.
    """
    if not body.use_beam_search:
        if body.length_penalty is not None:
            raise unsupported("length_penalty", "it belongs to use_beam_search")
        return None
    _check(body, extra)
    try:
        return BeamSearchParams(
            beam_width=body.n or 1,
            max_tokens=extra["max_tokens"],
            ignore_eos=bool(body.ignore_eos),
            length_penalty=1.0 if body.length_penalty is None else body.length_penalty,
            skip_special_tokens=body.skip_special_tokens is not False,
            logprobs=extra["logprobs"],
        )
    except RequestError as error:
        raise refused(error) from error


def _check(body: Generation, extra: Mapping[str, Any]) -> None:
    """Refuse what a search cannot do. Temperatures 0 and 1 change no order, so they are let be."""
    given = {name for name in Sampling.model_fields if getattr(body, name) is not None}
    wrong = (given | set(extra)) - _HONOURED
    wrong |= {"stream"} if body.stream else set()
    wrong |= {"temperature"} if body.temperature not in (None, 0.0, 1.0) else set()
    if wrong:
        raise unsupported(min(wrong), "beam search does not take it")


class BeamRun:
    """The searches of a request's prompts; what a form reads of a `Run` is here, too."""

    def __init__(self, model: ServedModel, params: BeamSearchParams) -> None:
        self.model, self.params = model, params
        self.choices: dict[tuple[int, int], Choice] = {}
        self._front: EngineFront = model.generates
        self._records: list[Record] = []  # one a prompt: those of its first step
        self._names: set[str] = set()
        self._searches: list[tuple[str, BeamSearch]] = []
        self._options: Mapping[str, Any] = {}

    async def submit(
        self,
        request_id: str,
        prompts: Sequence[list[int]],
        options: Mapping[str, Any],
    ) -> None:
        """Make ready. Raises `ApiError` where the engine has no room for all beams."""
        self._front.reserve(self.params.beam_width * len(prompts))
        self._options = options
        for number, tokens in enumerate(prompts):
            search = BeamSearch(
                tokens,
                self.params,
                ends=self._front.engine.ends,
                max_context=self.model.max_context,
                vocabulary=self.model.vocabulary,
            )
            self._searches.append((f"{request_id}-{number}", search))

    async def finish(self) -> list[Choice]:
        """Every choice, whole: of each prompt the best first."""
        async with asyncio.TaskGroup() as group:
            for name, search in self._searches:
                group.create_task(self._search(name, search))
        for number, (_, search) in enumerate(self._searches):
            for index, beam in enumerate(search.best()):
                place = index + number * self.params.beam_width
                self.choices[number, index] = self._choice(number, place, beam)
        return list(self.choices.values())

    async def _search(self, name: str, search: BeamSearch) -> None:
        step = 0
        while prompts := search.prompts:
            names = [f"{name}-{step}-{n}" for n in range(len(prompts))]
            asks = zip(names, prompts, strict=True)
            found = [self._next(each, prompt, search.asked) for each, prompt in asks]
            search.take(await asyncio.gather(*found))
            step += 1

    async def _next(self, name: str, prompt: Sequence[int], asked: SamplingParams) -> TokenLogprobs:
        done: asyncio.Future[Delta] = asyncio.get_running_loop().create_future()

        def sink(delta: Delta) -> None:
            if not done.done():
                done.set_result(delta)

        self._names.add(name)
        record = await self._front.submit(name, prompt, asked, sink, **self._options)
        if name.endswith("-0-0"):
            self._records.append(record)
        delta = await done
        self._names.discard(name)
        if delta.error is not None:
            raise failed(delta.error)
        if not delta.logprobs:
            raise ApiError(503, "the search was ended", code="draining")
        return delta.logprobs[0]

    def _choice(self, number: int, place: int, beam: Beam) -> Choice:
        text, skip = self.model.text, self.params.skip_special_tokens
        shown = text.decode(beam.shown, skip_special_tokens=skip) if text else ""
        stream = text and TextStream(text, skip_special=skip)
        return Choice(
            number,
            place,
            shown,
            list(beam.tokens),
            list(beam.entries),
            finish_reason=beam.reason,
            starts=text_starts(stream, beam.tokens) if stream else [],
        )

    def close(self) -> None:
        """End what still runs."""
        for name in self._names:
            self._front.abort(name)

    def usage(self) -> dict[str, Any]:
        """Exact counts of the tokens of prompts and answers; what the search threw away is not in
        them.
        """
        return usage_of(self._records, self.choices.values())
