"""The engine: requests in, tokens out, one step at a time.

A step is a transaction: the scheduler plans it and reserves blocks, the executor runs it, and it
is committed or rolled back. Where a step of several requests fails they are run one by one, so
that the request that cannot be served ends alone. An engine belongs to one thread at a time.

A runner that can is given the next step while one runs (see flight.py); what the tokens of that one
become, texts and ends, is found out beside the device's work.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from random import Random
from typing import NamedTuple

from .adjust import Constraint, bad_word_tokens
from .blocks import BlockPool
from .errors import LogitsError, QueueFullError, RequestError
from .executor import Batch, Releasing, StepRunner
from .flight import Flight, Flights
from .grammar import Grammars
from .limits import ABSENT, Absent, at_most, check_budget, ended_by
from .logprobs import Decode
from .memory import BlockMemory
from .monitor import config_of, spreads
from .params import SamplingParams, checked_token
from .policies import Policy
from .pooling import Pooling
from .results import (
    Completion,
    Delta,
    EngineStats,
    FinishReason,
    Logprob,
    Times,
    TokenLogprobs,
)
from .sampling import Sampler
from .scheduler import Scheduler
from .sequence import Sequence as Scheduled
from .step import Part, Step
from .swap import Disk
from .tensors import Array
from .text import Text, TextStream
from .thinking import thinking
from .track import Request, TokenTrack, Track

__all__ = [
    "Completion",
    "Delta",
    "Engine",
    "EngineStats",
    "FinishReason",
    "Logprob",
    "Times",
    "TokenLogprobs",
]


class _Rows(NamedTuple):
    """The results of one sequence in a step; `begin` is the position of its first token there,
    `greedy` the argmax of its last row.
    """

    sequence: Scheduled
    begin: int
    greedy: int
    logits: Array


class Engine:
    """Serves requests over a `StepRunner`. `ends` are the model's end tokens.

    `policy` orders the requests (first come where it is None), at most `max_waiting` may wait.
    Preempted sequences may be kept in `swap_blocks` blocks of host memory, or of `swap_directory`.
    `token_budget` bounds the tokens of a step, `beside_decodes` those of prompts in a step where
    others decode; with a `pace` the latter follows what is measured, so that such a step takes at
    most so many times as long as one of decodes. `max_batch` and `max_context` are limits below
    those of the runner. With a `seed` requests without one get theirs from it, one after another.
    With a `pooling` the runner's rows are no logits, and a request ends with one vector. Refusals
    of long prompts name what bounds them, `bounded_by`; those with an `absent` token are refused.
    """

    def __init__(
        self,
        runner: StepRunner,
        text: Text | None = None,
        ends: Iterable[int] = (),
        policy: Policy | None = None,
        *,
        prefix_caching: bool = True,
        swap_blocks: int = 0,
        swap_directory: Path | str | None = None,
        max_waiting: int | None = None,
        token_budget: int | None = None,
        beside_decodes: int | None = None,
        pace: float | None = None,
        max_batch: int | None = None,
        max_context: int | None = None,
        seed: int | None = None,
        pooling: Pooling | None = None,
        bounded_by: str = "",
        absent: Absent = ABSENT,
    ) -> None:
        if pace is not None and not pace > 1.0:
            raise ValueError(f"pace={pace}: wanted more than 1")
        self.runner, self.text, self.max_waiting, self.pooling = runner, text, max_waiting, pooling
        self.max_context = at_most("max_context", max_context, runner.max_context)
        self.absent, self.max_batch = absent, at_most("max_batch", max_batch, runner.max_batch)
        check_budget(token_budget, self.max_batch)
        self.bounded = ended_by(bounded_by, self.max_context, runner.max_context)
        self.vocabulary = pooling.token_ids if pooling else runner.vocabulary
        # A configuration may name tokens that the model never learned to give.
        self.ends = frozenset(e for e in ends if 0 <= e < runner.vocabulary)
        self.grammars = text and Grammars(text, runner.vocabulary, self.ends)
        self.pool = BlockPool(runner.blocks)
        store = None if swap_directory is None else Disk(swap_directory)
        self.memory = BlockMemory(runner, swap_blocks, store=store)
        self.scheduler = Scheduler(
            self.pool,
            block=runner.block,
            max_batch=self.max_batch,
            chunk=runner.chunk,
            policy=policy,
            memory=self.memory,
            rows=runner.max_rows,
            budget=token_budget,
            beside_decodes=beside_decodes,
            pace=pace,
            prefix_caching=prefix_caching and not (pooling and pooling.whole),
            window=runner.window,
            states=runner.states,
        )
        if pooling is not None:
            self.max_context = pooling.longest(self.max_context, self.scheduler)
        self.steps = self.prompt_tokens = self.generated_tokens = self.corrupted = 0
        self._requests: dict[str, Request] = {}
        self._tracks: dict[Scheduled, Track] = {}
        self._flights = Flights(
            runner, self.scheduler, self._batch, self._tracks.__contains__, self._may_guess
        )
        self._ended, self._numbers = 0.0, count()
        self._seeds = None if seed is None else Random(seed)

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self._requests)

    @property
    def is_full(self) -> bool:
        """Whether so many requests wait that another one is refused."""
        return self.max_waiting is not None and len(self.scheduler.waiting) >= self.max_waiting

    def submit(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        client: str = "",
        priority: int = 0,
        cache_salt: str = "",
    ) -> str:
        """Queue a request and return its id. Raises `RequestError` where it can never be served.

        Policies may go by the client and the priority (the lower the sooner); a priority that the
        policy does not look at is refused. Requests share the prefix cache where their salts are
        equal. Raises `QueueFullError` where too many wait.
        """
        params = params or SamplingParams()
        if priority and not self.scheduler.policy.by_priority:
            raise RequestError(
                f"priority={priority}: the engine's policy does not look at priorities; wanted 0"
            )
        name = request_id if request_id is not None else f"request-{next(self._numbers)}"
        if name in self._requests:
            raise RequestError(f"request id {name!r} is taken by a request that still runs")
        if self.is_full:
            raise QueueFullError(f"{len(self.scheduler.waiting)} requests wait: try again later")
        tokens = self.prompt_ids(prompt)
        pooling = self.pooling
        request = pooling.request(name, tokens) if pooling else self._request(name, tokens, params)
        track = request.fresh(0)
        track.sequence.client, track.sequence.priority = client, priority
        track.sequence.salt = cache_salt.encode()
        self._requests[name] = request
        self._add(track)
        self.scheduler.admit(track.sequence)
        self.prompt_tokens += len(tokens)
        return name

    def _add(self, track: Track) -> None:
        track.request.tracks.append(track)
        self._tracks[track.sequence] = track

    def prompt_ids(self, prompt: str | Sequence[int]) -> list[int]:
        """The checked token ids of a prompt."""
        if isinstance(prompt, str):
            if self.text is None:
                raise RequestError("the artifact has no tokenizer: give token ids, not text")
            tokens = self.text.encode(prompt)
        else:
            tokens = [checked_token(t, self.vocabulary) for t in prompt]
        if not tokens:
            raise RequestError("the prompt is empty: wanted at least one token")
        self.absent.check(tokens)
        longest = self.max_context - (self.pooling is None)
        if len(tokens) > longest:
            room = "" if self.pooling else ", and room for one token"
            raise RequestError(
                f"the prompt has {len(tokens)} tokens, the limit is {longest}"
                f" (a context of {self.max_context}{room}){self.bounded}"
            )
        return tokens

    def is_running(self, request_id: str) -> bool:
        """Whether a request has not ended."""
        return request_id in self._requests

    def prompt_of(self, request_id: str) -> tuple[int, ...]:
        """The prompt's token ids of a request that runs."""
        return self._requests[request_id].prompt

    def _request(self, name: str, tokens: list[int], params: SamplingParams) -> Request:
        if params.seed is None and self._seeds is not None:
            params = replace(params, seed=self._seeds.getrandbits(63))
        self._check_text(params)
        params.check_vocabulary(self.runner.vocabulary)
        ends = frozenset(params.stop_token_ids or ()) | self.absent.ends
        ends |= frozenset() if params.ignore_eos else self.ends
        room = self.max_context - len(tokens)
        limit = room if params.max_tokens is None else min(room, params.max_tokens)
        bad = bad_word_tokens(params.bad_words, self.text) if params.bad_words and self.text else ()
        scored = params.prompt_logprobs is not None
        first = self._constraint(params, tokens)  # here, so that a bad grammar is refused

        def fresh(number: int) -> Track:
            sequence = Scheduled(
                f"{name}/{number}" if number else name,
                list(tokens),
                len(tokens),
                limit=limit,
                all_rows=scored and number == 0,
                # Blocks that are found are not computed, and would have no logits.
                reads_cache=not (params.skip_reading_prefix_cache or scored),
            )
            constraint = self._constraint(params, tokens) if number else first
            sampler = Sampler(params.of_sequence(number), ends, tokens, bad, constraint)
            return TokenTrack(request, number, sequence, sampler, ends, self._stream(params))

        request = Request(name, params, tuple(tokens), fresh, decode=self._decode)
        if scored:
            request.prompt_logprobs = [None for _ in tokens]
        return request

    def _check_text(self, params: SamplingParams) -> None:
        for name in ("stop", "bad_words", "structured_outputs"):
            if getattr(params, name) and self.text is None:
                raise RequestError(f"{name}: the artifact has no tokenizer, so it has no strings")

    def _constraint(self, params: SamplingParams, prompt: Sequence[int]) -> Constraint | None:
        wanted, budget = params.structured_outputs, params.thinking_token_budget
        grammar = self.grammars.constraint(wanted) if wanted and self.grammars else None
        return thinking(self.text, self.vocabulary, prompt, budget, grammar)

    @property
    def _decode(self) -> Decode:
        text = self.text
        return text and (lambda token: text.decode([token], skip_special_tokens=False))

    def _stream(self, params: SamplingParams) -> TextStream | None:
        if self.text is None or not params.detokenize:
            return None
        return TextStream(
            self.text,
            skip_special=params.skip_special_tokens,
            shown=params.shown_special_ids or (),
            stop=params.stop_strings,
            keep_stop=params.include_stop_str_in_output,
        )

    def step(self) -> list[Delta]:
        """Run one step and return what each of its requests got; empty where nothing is to run."""
        flight = self._flights.first
        if flight is None:
            step = self.scheduler.next_step()
            if step is None:
                return []
            try:
                flight = self._flights.begin(step)
            except Exception as error:
                return self._one_by_one(step, error)
        self._flights.begin_next()
        try:
            rows = self._collect(flight)
        except Exception as error:
            return self._lost(flight, error)
        return self._advance(rows)

    def _run(self, step: Step) -> list[_Rows]:
        return self._collect(self._flights.begin(step))

    def _collect(self, flight: Flight) -> list[_Rows]:
        argmax, logits = self._flights.collect(flight)
        self.steps += 1
        self._note_times(flight)
        greedy = argmax.tolist()
        return [
            _Rows(p.sequence, p.begin, greedy[p.end - 1], logits[p.first : p.end])
            for p in flight.places
        ]

    def _lost(self, flight: Flight, error: Exception) -> list[Delta]:
        """What becomes of a step whose results did not come; where another one was to follow it,
        nothing can be done again.
        """
        if not flight.committed:
            return self._one_by_one(flight.step, error)
        parts = self._flights.drop()
        return [self._fail(self._tracks[s], error) for s in parts if s in self._tracks]

    def _may_guess(self, sequence: Scheduled) -> bool:
        request = self._tracks[sequence].request
        return request.forked or request.params.n == 1

    def _batch(self, step: Step, fed: Sequence[int]) -> Batch:
        """The step's tokens, and whether any of its sequences reads more of logits than argmax."""
        tracks = (self._tracks.get(part.sequence) for part in step.parts if part.rows)
        wants = any(t is not None and t.reads_logits for t in tracks)
        return replace(step.batch(self.runner.block), wants_logits=wants, fed=fed)

    def _note_times(self, flight: Flight) -> None:
        parts, now = flight.step.parts, time.monotonic()
        prompt = sum(part.count for part in parts if part.count > 1)
        decodes = sum(part.count == 1 for part in parts)
        # A step that was begun behind another one ran from the end of that one on.
        self.memory.costs.see_step(prompt, decodes, now - max(flight.start, self._ended))
        self._ended = now
        for part in parts:
            track = self._tracks.get(part.sequence)
            if track is not None and track.request.started is None:
                track.request.started = flight.start

    def _one_by_one(self, failed: Step, error: Exception) -> list[Delta]:
        """Serve the parts of a failed step alone, and end those that fail again."""
        if len(failed.parts) == 1:
            return [self._fail(self._tracks[failed.parts[0].sequence], error)]
        deltas: list[Delta] = []
        for part in failed.parts:
            if part.sequence not in self._tracks:
                continue  # its request ended with another of its sequences
            try:
                deltas += self._alone(part)
            except Exception as own:
                deltas.append(self._fail(self._tracks[part.sequence], own))
        return deltas

    def _alone(self, part: Part) -> list[Delta]:
        """Serve one part of a failed step by itself, and before it what it has lost."""
        deltas: list[Delta] = []
        while part.sequence in self._tracks and part.sequence.computed < part.end:
            step = self.scheduler.alone(part)
            if step is None:
                break
            deltas += self._advance(self._run(step))
        return deltas

    def _advance(self, rows: Iterable[_Rows]) -> list[Delta]:
        """Give each sequence that has been computed to its end its next token."""
        deltas: list[Delta] = []
        for sequence, begin, greedy, logits in rows:
            track = self._tracks.get(sequence)
            if track is None:
                continue
            if sequence.all_rows and begin < sequence.prompt_length:
                track.note_prompt(begin, logits)
            if sequence.pending:
                continue
            for each in self._fork(track):
                if each.sequence in self._tracks:  # the error of one ends the others
                    deltas.append(self._extend(each, greedy, logits[-1]))
        return deltas

    def _fork(self, track: Track) -> list[Track]:
        """The track, and the others of its request where its prompt has just been computed."""
        request = track.request
        if request.forked or request.params.n == 1:
            return [track]
        request.forked = True
        others = [request.fresh(number) for number in range(1, request.params.n)]
        for other in others:
            other.sequence.client = track.sequence.client
            other.sequence.priority = track.sequence.priority
            other.sequence.salt = track.sequence.salt
            self._add(other)
            self.scheduler.fork(track.sequence, other.sequence)
        return [track, *others]

    def _extend(self, track: Track, greedy: int, logits: Array) -> Delta:
        try:
            delta = track.extend(greedy, logits)
        except Exception as error:
            return self._fail(track, error)
        self.generated_tokens += len(delta.token_ids)
        if delta.finish_reason is not None:
            self._end(track)
        return delta

    def _end(self, track: Track) -> None:
        self.scheduler.remove(track.sequence)
        del self._tracks[track.sequence]
        if not any(t.sequence in self._tracks for t in track.request.tracks):
            del self._requests[track.request.name]

    def abort(self, request_id: str) -> Delta | None:
        """End a request wherever it is; None where there is no such request."""
        if request_id not in self._requests:
            return None
        track = self._requests[request_id].tracks[0]
        self._drop(track.request)
        return Delta(request_id, finish_reason="abort", times=track.times())

    def _fail(self, track: Track, error: Exception) -> Delta:
        # What a failed request computed may be what failed it: nobody else is to find it.
        self.scheduler.distrust(track.sequence)
        self.corrupted += isinstance(error, LogitsError)
        self._drop(track.request)
        return Delta(
            track.request.name,
            finish_reason="error",
            error=error,
            index=track.index,
            times=track.times(),
        )

    def _drop(self, request: Request) -> None:
        for track in request.tracks:
            if track.sequence in self._tracks:
                self._end(track)

    def stats(self) -> EngineStats:
        """Counts for a monitor; reading them changes nothing."""
        return EngineStats(
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            blocks_used=self.pool.used,
            blocks_cached=self.pool.cached,
            blocks_free=self.pool.free,
            steps=self.steps,
            preemptions=self.scheduler.preemptions,
            swaps=self.memory.saves,
            prefix_queries=self.scheduler.prefix_queries,
            prefix_hits=self.scheduler.prefix_hits,
            prompt_tokens=self.prompt_tokens,
            generated_tokens=self.generated_tokens,
            evictions=self.pool.evictions,
            preempted=sum(s.cached is not None for s in self.scheduler.waiting),
            corrupted=self.corrupted,
            spreads=spreads(self.pool, self.grammars),
        )

    def forget_prefixes(self) -> None:
        """Find no prompt in the prefix cache that was computed before now."""
        self.pool.forget()

    def sleep(self) -> None:
        """Give the memory of the cache back to the machine, and forget what it held; the next step
        takes it again. Raises `RequestError` where requests run, or memory cannot be given back.
        """
        if self.has_work:
            raise RequestError(f"{len(self._requests)} requests run: nobody may sleep")
        if not isinstance(self.runner, Releasing):
            raise RequestError("the memory of this engine's cache cannot be given back")
        self.pool.forget()
        self.runner.release_caches()

    def config(self) -> dict[str, str]:
        """How the engine was made, by names, for a monitor."""
        return {
            "block_size": str(self.runner.block),
            "num_blocks": str(self.pool.size),
            "max_model_len": str(self.max_context),
            "max_num_seqs": str(self.max_batch),
            **config_of(self.scheduler, self.memory),
        }

    def check(self) -> None:
        """Raise AssertionError unless every block, sequence and request is accounted for."""
        self.scheduler.check(self._flights.sequences())
        scheduled = set(self.scheduler.sequences())
        tracked = {s: t.request.name for s, t in self._tracks.items()}
        assert scheduled == set(tracked), f"{scheduled ^ set(tracked)} is scheduled or asked alone"
        assert set(tracked.values()) == set(self._requests), f"{tracked}, {set(self._requests)}"
