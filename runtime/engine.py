"""The engine: requests in, tokens out, one step at a time.

A step is a transaction: the scheduler plans it and reserves blocks, the executor runs it, and it
is committed or rolled back. Where a step of several requests fails they are run one by one, so
that the request that cannot be served ends alone. An engine belongs to one thread at a time.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from operator import index
from typing import Literal

from .blocks import BlockPool
from .errors import RequestError
from .executor import StepRunner
from .sampling import Sampler, SamplingParams
from .scheduler import Part, Priority, Scheduler, Step, first_come
from .scheduler import Sequence as Scheduled
from .tensors import Array
from .text import Text, TextStream

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True)
class Logprob:
    """A token's log probability before any sampling parameter, and its rank, 1 for the likeliest.

    `decoded_token` is None where the engine has no tokenizer.
    """

    logprob: float
    rank: int
    decoded_token: str | None = None


# The chosen token first, then the likeliest ones.
TokenLogprobs = Mapping[int, Logprob]


@dataclass(frozen=True)
class Times:
    """When a request arrived, was first computed, gave its first token, ended.

    Seconds of `time.monotonic`; None for what did not happen.
    """

    arrived: float
    started: float | None = None
    first_token: float | None = None
    finished: float | None = None


@dataclass(frozen=True)
class Delta:
    """What a step gave to one sequence of a request; a finish reason comes with its last one.

    `index` counts the sequences of a request that asked for several (`n`). `logprobs` has an entry
    for each token id, `prompt_logprobs` for each prompt token (None for the first); they come where
    they were asked for, the latter with the first delta. `cached_tokens` of the prompt were found
    in the prefix cache. `stop_reason` is the stop string or the stop token that ended the sequence,
    None for the model's own end token. `times` come with the finish reason.
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    text: str = ""
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    index: int = 0
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    cached_tokens: int = 0
    stop_reason: int | str | None = None
    times: Times | None = None


@dataclass(frozen=True)
class Completion:
    """A finished request. `token_ids` holds the token that ended it, `text` does not show it.

    `finish_reason` is "stop" (an end token or a stop string) or "length". Others: see `Delta`.
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    prompt_token_ids: tuple[int, ...] = ()
    index: int = 0
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    cached_tokens: int = 0
    stop_reason: int | str | None = None
    times: Times | None = None


@dataclass(frozen=True)
class EngineStats:
    """What an engine holds now, and what it has counted since it was made.

    Blocks: `used` are held by sequences, `cached` by nobody but their content may be used again,
    `free` are the rest. `prefix_queries` counts prompt tokens that were looked up in the prefix
    cache, `prefix_hits` those that were found.
    """

    running: int
    waiting: int
    blocks_used: int
    blocks_cached: int
    blocks_free: int
    steps: int
    preemptions: int
    prefix_queries: int = 0
    prefix_hits: int = 0


@dataclass(eq=False)
class _Request:
    params: SamplingParams
    sequence: Scheduled
    sampler: Sampler
    ends: frozenset[int]
    limit: int
    stream: TextStream | None


class Engine:
    """Serves requests over a `StepRunner`. `ends` are the model's end tokens."""

    def __init__(
        self,
        runner: StepRunner,
        text: Text | None = None,
        ends: Iterable[int] = (),
        policy: Priority = first_come,
    ) -> None:
        self.runner, self.text = runner, text
        # A configuration may name tokens that the model never learned to give.
        self.ends = frozenset(e for e in ends if 0 <= e < runner.vocabulary)
        self.pool = BlockPool(runner.blocks)
        self.scheduler = Scheduler(
            self.pool,
            block=runner.block,
            max_batch=runner.max_batch,
            chunk=runner.chunk,
            policy=policy,
        )
        self.steps = 0
        self._requests: dict[str, _Request] = {}
        self._numbers = count()

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self._requests)

    def submit(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        request_id: str | None = None,
    ) -> str:
        """Queue a request and return its id. Raises `RequestError` where it can never be served."""
        params = params or SamplingParams()
        name = request_id if request_id is not None else f"request-{next(self._numbers)}"
        if name in self._requests:
            raise RequestError(f"request id {name!r} is taken by a request that still runs")
        tokens = self.prompt_ids(prompt)
        request = self._request(name, tokens, params)
        self._requests[name] = request
        self.scheduler.admit(request.sequence)
        return name

    def prompt_ids(self, prompt: str | Sequence[int]) -> list[int]:
        """The checked token ids of a prompt."""
        if isinstance(prompt, str):
            if self.text is None:
                raise RequestError("the artifact has no tokenizer: give token ids, not text")
            tokens = self.text.encode(prompt)
        else:
            tokens = [_token(t, self.runner.vocabulary) for t in prompt]
        if not tokens:
            raise RequestError("the prompt is empty: wanted at least one token")
        longest = self.runner.max_context - 1
        if len(tokens) > longest:
            raise RequestError(
                f"the prompt has {len(tokens)} tokens, the limit is {longest}"
                f" (a context of {self.runner.max_context}, and room for one token)"
            )
        return tokens

    def prompt_of(self, request_id: str) -> tuple[int, ...]:
        """The prompt's token ids of a request that runs."""
        sequence = self._requests[request_id].sequence
        return tuple(sequence.tokens[: sequence.prompt_length])

    def _request(self, name: str, tokens: list[int], params: SamplingParams) -> _Request:
        if params.stop_strings and self.text is None:
            raise RequestError(
                "stop: the artifact has no tokenizer, so stop strings cannot be seen"
            )
        ends = frozenset(params.stop_token_ids or ())
        for token in ends:
            _token(token, self.runner.vocabulary)
        if not params.ignore_eos:
            ends |= self.ends
        room = self.runner.max_context - len(tokens)
        stream = self.text and TextStream(
            self.text,
            skip_special=params.skip_special_tokens,
            stop=params.stop_strings,
            keep_stop=params.include_stop_str_in_output,
        )
        sequence = Scheduled(name, tokens, len(tokens))
        limit = room if params.max_tokens is None else min(room, params.max_tokens)
        return _Request(params, sequence, Sampler(params, ends), ends, limit, stream)

    def step(self) -> list[Delta]:
        """Run one step and return what each of its requests got; empty where nothing is to run."""
        step = self.scheduler.next_step()
        if step is None:
            return []
        try:
            argmax, logits = self._run(step)
        except Exception as error:
            return self._one_by_one(step, error)
        return self._advance(step.parts, argmax, logits)

    def _run(self, step: Step) -> tuple[Array, Array]:
        try:
            results = self.runner.step(step.batch(self.runner.block))
        except BaseException:
            self.scheduler.roll_back(step)
            raise
        self.scheduler.commit(step)
        self.steps += 1
        return results

    def _one_by_one(self, failed: Step, error: Exception) -> list[Delta]:
        """Serve the parts of a failed step alone, and end those that fail again."""
        if len(failed.parts) == 1:
            return [self._fail(failed.parts[0].sequence.id, error)]
        deltas: list[Delta] = []
        for part in failed.parts:
            try:
                argmax, logits = self._run(self.scheduler.alone(part))
            except Exception as own:
                deltas.append(self._fail(part.sequence.id, own))
            else:
                deltas += self._advance((part,), argmax, logits)
        return deltas

    def _advance(self, parts: Iterable[Part], argmax: Array, logits: Array) -> list[Delta]:
        """Give each sequence that has been computed to its end its next token."""
        ended = [self._requests[p.sequence.id] for p in parts if p.sequence.pending == 0]
        return [
            self._extend(request, int(argmax[row]), logits[row])
            for row, request in enumerate(ended)
        ]

    def _extend(self, request: _Request, greedy: int, logits: Array) -> Delta:
        sequence = request.sequence
        try:
            token = request.sampler.choose(logits, greedy, sequence.generated)
            sequence.tokens.append(token)
            shown, reason = self._finish_reason(request, token)
        except Exception as error:
            return self._fail(sequence.id, error)
        if reason is not None:
            self._drop(sequence.id)
        return Delta(sequence.id, (token,), shown, reason)

    def _finish_reason(self, request: _Request, token: int) -> tuple[str, FinishReason | None]:
        """The text that may be shown after a token, and why the request ends there, if it does."""
        generated, stream = request.sequence.generated, request.stream
        may_stop = generated >= request.params.min_tokens
        if token in request.ends and may_stop:
            shown = (
                stream.push(token) if stream and request.params.include_stop_str_in_output else ""
            )
            return shown + (stream.finish() if stream else ""), "stop"
        shown = stream.push(token, may_stop=may_stop) if stream else ""
        if stream and stream.stopped:
            return shown, "stop"
        if generated < request.limit:
            return shown, None
        shown += stream.finish() if stream else ""
        return shown, "stop" if stream and stream.stopped else "length"

    def abort(self, request_id: str) -> Delta | None:
        """End a request wherever it is; None where there is no such request."""
        if request_id not in self._requests:
            return None
        self._drop(request_id)
        return Delta(request_id, finish_reason="abort")

    def _fail(self, request_id: str, error: Exception) -> Delta:
        self._drop(request_id)
        return Delta(request_id, finish_reason="error", error=error)

    def _drop(self, request_id: str) -> None:
        self.scheduler.remove(self._requests.pop(request_id).sequence)

    def stats(self) -> EngineStats:
        """Counts for a monitor; reading them changes nothing."""
        return EngineStats(
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            blocks_used=self.pool.used,
            blocks_cached=0,
            blocks_free=self.pool.free,
            steps=self.steps,
            preemptions=self.scheduler.preemptions,
        )

    def check(self) -> None:
        """Raise AssertionError unless every block, sequence and request is accounted for."""
        self.scheduler.check()
        scheduled = {s.id for s in self.scheduler.sequences()}
        assert scheduled == set(self._requests), (
            f"{scheduled} are scheduled, {self._requests} asked"
        )


def _token(token: object, vocabulary: int) -> int:
    try:
        number = index(token)  # pyright: ignore[reportArgumentType]
    except TypeError:
        raise RequestError(f"a prompt is text or token ids, given {token!r}") from None
    if not 0 <= number < vocabulary:
        raise RequestError(f"token id {number}: wanted 0 to {vocabulary - 1}")
    return number
