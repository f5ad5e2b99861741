"""From prompts to a merged stream of deltas, and from deltas to choices."""

import asyncio
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..engine import Delta, Logprob, TokenLogprobs
from ..errors import RequestError
from ..sampling import SamplingParams
from ..text import TextStream
from .errors import ApiError, failed, refused
from .front import EngineFront, Record
from .models import ServedModel

_INLINE = 4096  # characters that are tokenized at once; more would hold up the event loop


def new_id(prefix: str) -> str:
    """A fresh id, such as chatcmpl-1f0e... for the prefix "chatcmpl-"."""
    return f"{prefix}{uuid.uuid4().hex}"


async def encode(model: ServedModel, prompt: str, *, add_special_tokens: bool) -> list[int]:
    """The ids of a text, computed beside the event loop where it is long."""

    def work() -> list[int]:
        return model.tokenizer.encode(prompt, add_special_tokens=add_special_tokens)

    return await beside(work, len(prompt))


async def beside(work: Callable[[], list[int]], size: int) -> list[int]:
    """The ids that `work` gives for texts of so many characters, beside the event loop where they
    are many.
    """
    try:
        return work() if size <= _INLINE else await asyncio.to_thread(work)
    except (UnicodeError, TypeError) as error:
        message = f"the prompt is no valid text: {error}"
        raise ApiError(400, message, code="invalid_value") from error


def fitted(
    model: ServedModel,
    tokens: list[int],
    last: int | None,
    param: str,
    *,
    room: int = 1,
    types: int = 1,
) -> list[int]:
    """The ids, cut to their `last` ones where asked; raises where they leave no `room` for tokens
    of output. Token ids come in `types`, the vocabulary over and over.
    """
    tokens = tokens[-last:] if last is not None else tokens
    if not tokens:
        raise ApiError(400, f"{param}: the prompt is empty", param=param, code="invalid_value")
    for token in tokens:
        if not 0 <= token < model.vocabulary * types:
            wanted = f"{param}: token id {token}, wanted 0 to {model.vocabulary - 1}"
            raise ApiError(400, wanted, param=param, code="invalid_value")
    if len(tokens) + room > model.max_context:
        beside = f" with at least {room} of output" if room else ""
        message = (
            # Clients tell this error from others by the words of the second half.
            f"{param}: the prompt has {len(tokens)} tokens, this model's maximum context length is"
            f" {model.max_context} tokens{beside}{model.bounded}"
        )
        raise ApiError(400, message, param=param, code="context_length_exceeded")
    return tokens


@dataclass(eq=False)
class Choice:
    """One sequence as far as it has come; `starts` is where the text of each token begins."""

    prompt: int
    index: int
    text: str = ""
    tokens: list[int] = field(default_factory=list[int])
    logprobs: list[TokenLogprobs] = field(default_factory=list[TokenLogprobs])
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    starts: list[int] = field(default_factory=list[int])
    reasoning_tokens: int = 0

    @property
    def mean_logprob(self) -> float:
        """The mean log probability of its tokens, where they were asked for."""
        pairs = zip(self.tokens, self.logprobs, strict=True)
        values = [found[token].logprob for token, found in pairs]
        return sum(values) / max(1, len(values))

    def drop_output(self) -> None:
        """Leave nothing but what is known of the prompt."""
        self.text, self.finish_reason, self.stop_reason = "", "length", None
        self.tokens.clear()
        self.logprobs.clear()

    def take(self, delta: Delta) -> None:
        """Add what a step gave."""
        self.starts += [len(self.text)] * len(delta.token_ids)
        self.text += delta.text
        self.tokens += delta.token_ids
        self.logprobs += delta.logprobs or ()
        self.prompt_logprobs = delta.prompt_logprobs or self.prompt_logprobs
        self.finish_reason = delta.finish_reason
        self.stop_reason = delta.stop_reason


class Inbox:
    """Deltas of several requests for one reader on the same loop; a queue that nobody else waits at
    costs a fourth of asyncio's.
    """

    def __init__(self) -> None:
        self._items: deque[tuple[int, Delta]] = deque()
        self._wake: asyncio.Future[None] | None = None

    def put(self, item: tuple[int, Delta]) -> None:
        """Add a delta, with the number of its request."""
        self._items.append(item)
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def get(self) -> tuple[int, Delta]:
        """The first one, waited for if there is none."""
        while not self._items:
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        return self._items.popleft()


class Run:
    """Several requests as one stream. Leaving the `async with` block ends what still runs."""

    def __init__(self, model: ServedModel, params: SamplingParams) -> None:
        self.model, self.params = model, params
        self.records: list[Record] = []
        self.choices: dict[tuple[int, int], Choice] = {}
        self._front: EngineFront = model.generates
        self._inbox = Inbox()
        self._names: list[str] = []

    async def __aenter__(self) -> "Run":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End what still runs."""
        for name in self._names:
            self._front.abort(name)

    async def submit(
        self,
        request_id: str,
        prompts: Sequence[list[int]],
        options: Mapping[str, Any],
    ) -> None:
        """Queue every prompt, all or none. Raises `ApiError` where one cannot be served."""
        sequences = self.params.n
        self._front.reserve(sequences * len(prompts))
        for number in range(len(prompts)):
            for index in range(sequences):
                self.choices[number, index] = Choice(number, index + number * sequences)
        # All at once: each waits for the step that runs, and they are to share the next one.
        each = [
            self._submit(request_id if len(prompts) == 1 else f"{request_id}-{n}", n, p, options)
            for n, p in enumerate(prompts)
        ]
        for found in await asyncio.gather(*each, return_exceptions=True):
            if isinstance(found, RequestError):
                raise refused(found) from found
            if isinstance(found, BaseException):
                raise found
            self.records.append(found)

    async def _submit(
        self, name: str, number: int, tokens: list[int], options: Mapping[str, Any]
    ) -> Record:
        def sink(delta: Delta) -> None:
            self._inbox.put((number, delta))

        record = await self._front.submit(name, tokens, self.params, sink, **options)
        self._names.append(name)  # now it is ours to end
        return record

    async def __aiter__(self) -> AsyncIterator[tuple[Choice, Delta]]:
        """Deltas as they come, each taken into its choice, to the end of all."""
        unfinished = len(self.choices)
        while unfinished:
            number, delta = await self._inbox.get()
            if delta.error is not None:
                raise failed(delta.error)
            for choice in self._taking(number, delta):
                choice.take(delta)
                unfinished -= delta.finish_reason is not None
                yield choice, delta

    def _taking(self, number: int, delta: Delta) -> list[Choice]:
        """Whom a delta is for: an abort is for every choice of its request that still runs."""
        if delta.finish_reason != "abort":
            return [self.choices[number, delta.index]]
        own = [c for (prompt, _), c in self.choices.items() if prompt == number]
        return [c for c in own if c.finish_reason is None]

    async def finish(self) -> list[Choice]:
        """Every choice, whole."""
        async for _ in self:
            pass
        return list(self.choices.values())

    def usage(self) -> dict[str, Any]:
        """Exact counts of tokens so far."""
        return usage_of(self.records, self.choices.values())


def usage_of(records: Iterable[Record], choices: Iterable[Choice]) -> dict[str, Any]:
    """Counts of tokens as clients read them."""
    each = list(records)
    prompt = sum(record.prompt_tokens for record in each)
    chosen = list(choices)
    output = sum(len(choice.tokens) for choice in chosen)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": sum(r.cached_tokens for r in each)},
        "completion_tokens_details": {"reasoning_tokens": sum(c.reasoning_tokens for c in chosen)},
    }


def token_text(
    model: ServedModel, token: int, known: Logprob | None = None, *, as_id: bool = False
) -> str:
    """A token as a client reads it; its id where asked or where the model has no tokenizer."""
    if as_id or model.text is None:
        return f"token_id:{token}"
    if known is not None and known.decoded_token is not None:
        return known.decoded_token
    return model.text.piece(token)


def text_starts(stream: TextStream, tokens: Iterable[int]) -> list[int]:
    """Where the text of each token begins in that of all."""
    starts, end = [], 0
    for token in tokens:
        starts.append(end)
        end += len(stream.push(token))
    return starts


def chat_logprobs(
    model: ServedModel,
    tokens: Sequence[int],
    found: Sequence[TokenLogprobs],
    top: int,
    *,
    as_ids: bool = False,
) -> dict[str, Any]:
    """The chat form: an object for each token, with its `top` likeliest rivals."""
    content = []
    for token, rivals in zip(tokens, found, strict=True):
        likeliest = sorted(rivals.items(), key=lambda item: item[1].rank)[:top]
        entry = _entry(model, token, rivals[token], as_ids)
        entry["top_logprobs"] = [_entry(model, t, known, as_ids) for t, known in likeliest]
        content.append(entry)
    return {"content": content, "refusal": None}


def _entry(model: ServedModel, token: int, known: Logprob, as_id: bool) -> dict[str, Any]:
    text = token_text(model, token, known)
    shown = token_text(model, token, known, as_id=as_id)
    return {"token": shown, "logprob": max(known.logprob, -9999.0), "bytes": list(text.encode())}


def completion_logprobs(
    model: ServedModel,
    tokens: Sequence[int],
    found: Sequence[TokenLogprobs | None],
    top: int,
    offset: int,
    *,
    as_ids: bool = False,
) -> dict[str, Any]:
    """The older form: parallel lists; `offset` is where the first token's text begins."""
    texts, values, tops, offsets = [], [], [], []
    for token, rivals in zip(tokens, found, strict=True):
        known = rivals[token] if rivals is not None else None
        texts.append(token_text(model, token, known, as_id=as_ids))
        values.append(max(known.logprob, -9999.0) if known else None)
        offsets.append(offset)
        offset += len(token_text(model, token, known))
        tops.append(rivals and _with_rivals(model, token, rivals, top, as_ids))
    return {
        "tokens": texts,
        "token_logprobs": values,
        "top_logprobs": tops if top else None,
        "text_offset": offsets,
    }


def _with_rivals(
    model: ServedModel, token: int, rivals: TokenLogprobs, top: int, as_ids: bool
) -> dict[str, float]:
    """The `top` likeliest tokens, and behind them the one that came where it is none of them."""
    likeliest = sorted(rivals.items(), key=lambda item: item[1].rank)[:top]
    shown = dict([*likeliest, (token, rivals[token])])
    return {
        token_text(model, t, known, as_id=as_ids): max(known.logprob, -9999.0)
        for t, known in shown.items()
    }


def prompt_logprobs(
    model: ServedModel, choice: Choice, *, as_ids: bool = False
) -> list[dict[str, Any] | None] | None:
    """Those of each token of a prompt, by token ids; None for the first, which nothing foretells,
    and where they were not asked for.
    """
    if choice.prompt_logprobs is None:
        return None
    return [_by_id(model, at, as_ids) if at else None for at in choice.prompt_logprobs]


def _by_id(model: ServedModel, rivals: TokenLogprobs, as_ids: bool) -> dict[str, Any]:
    return {
        str(token): {
            "logprob": max(known.logprob, -9999.0),
            "rank": known.rank,
            "decoded_token": token_text(model, token, known, as_id=as_ids),
        }
        for token, known in rivals.items()
    }
