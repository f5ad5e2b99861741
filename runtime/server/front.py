"""One engine on a thread of its own, for callers on an event loop.

Everything that touches the engine happens on that thread, between steps; what a step gives is
handed to the loop at once. Books and metrics are kept on the loop, so nothing here needs a lock but
the list of commands.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

from ..engine import Delta, EngineStats
from ..sampling import SamplingParams
from .errors import ApiError

Sink = Callable[[Delta], None]
T = TypeVar("T")


class Engine(Protocol):
    """All that the server asks of an engine; `ends` are the tokens that end a text."""

    ends: frozenset[int]

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        ...

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams | None,
        request_id: str | None,
        *,
        client: str = "",
        priority: int = 0,
        cache_salt: str = "",
    ) -> str:
        """Queue a request; raises `RequestError` where it can never be served."""
        ...

    def step(self) -> list[Delta]:
        """Run one step; what each sequence got."""
        ...

    def abort(self, request_id: str) -> object:
        """End a request wherever it is."""
        ...

    def stats(self) -> EngineStats:
        """What the engine holds and has counted."""
        ...

    def check(self) -> None:
        """Raise AssertionError unless everything is accounted for."""
        ...

    def forget_prefixes(self) -> None:
        """Find no prompt in the cache that was computed before now."""
        ...

    def sleep(self) -> None:
        """Give the memory of the cache back until the next step; raises `RequestError`."""
        ...


@dataclass(eq=False)
class Record:
    """The books of one request: counts of tokens, and times in seconds of the front's clock.

    `trace` are the headers that name its caller's span.
    """

    id: str
    prompt_tokens: int
    sequences: int
    max_tokens: int | None
    arrived: float
    started: float | None = None
    first_token: float | None = None
    last_token: dict[int, float] = field(default_factory=dict[int, float])
    generated: dict[int, int] = field(default_factory=dict[int, int])
    cached_tokens: int = 0
    finished: float | None = None
    reason: str | None = None
    trace: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def generated_tokens(self) -> int:
        """The tokens of all sequences."""
        return sum(self.generated.values())


class Observer(Protocol):
    """Sees every event of a front, on the event loop."""

    def arrived(self, record: Record) -> None:
        """A request was accepted."""
        ...

    def gave(self, record: Record, delta: Delta, now: float) -> None:
        """A step gave tokens to a request; called before the record takes them in."""
        ...

    def stepped(self, tokens: int, now: float) -> None:
        """A step ended: `tokens` it gave, and prompt tokens of the requests that it began."""
        ...

    def ended(self, record: Record) -> None:
        """A request is over; its reason and its times are in the record."""
        ...


@dataclass(eq=False)
class _Open:
    record: Record
    sink: Sink
    unfinished: int


class EngineFront:
    """Requests of an event loop over one engine. `limit` bounds the sequences in flight."""

    def __init__(
        self,
        engine: Engine,
        observer: Observer,
        *,
        limit: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine, self.observer, self.limit = engine, observer, limit
        self.failure: Exception | None = None
        self.sequences = 0
        self._clock = clock
        self._open: dict[str, _Open] = {}
        self._commands: list[Callable[[], None]] = []
        self._wake = threading.Condition()
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="ferrule-engine", daemon=True)

    @property
    def requests(self) -> int:
        """How many requests are unfinished."""
        return len(self._open)

    @property
    def is_alive(self) -> bool:
        """Whether the engine can serve."""
        return self.failure is None and self._thread.is_alive()

    def start(self) -> None:
        """Start the engine's thread; called on the loop that will submit."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def close(self) -> None:
        """End the thread after the step that runs."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def reserve(self, sequences: int) -> None:
        """Raise unless so many sequences may enter now."""
        if not self.is_alive:
            raise ApiError(503, f"the engine has stopped: {self.failure}", code="engine_stopped")
        if self.sequences + sequences > self.limit:
            raise ApiError(
                429,
                f"{self.sequences} sequences are in flight, {sequences} more were asked,"
                f" the limit is {self.limit}",
                code="queue_full",
                retry_after=1,
            )

    async def submit(
        self,
        request_id: str,
        prompt: Sequence[int],
        params: SamplingParams | None,
        sink: Sink,
        *,
        trace: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Record:
        """Queue a request; `sink` gets its deltas. Raises `RequestError` where it is refused.

        Options are `client`, `priority` and `cache_salt` of the request; `trace` are its headers.
        """
        sequences = getattr(params, "n", 1)
        most = params.max_tokens if params else None
        record = Record(request_id, len(prompt), sequences, most, self._clock())
        record.trace = trace or {}
        if request_id in self._open:
            raise ApiError(
                400,
                f"request_id: {request_id!r} is taken by a request that still runs",
                param="request_id",
                code="invalid_value",
            )
        self._open[request_id] = _Open(record, sink, sequences)
        self.sequences += sequences
        try:
            await self._call(lambda: self.engine.submit(prompt, params, request_id, **options))
        except BaseException:
            # A caller that is gone may have been queued all the same.
            if self._forget(request_id) is not None:
                self._post(lambda: self.engine.abort(request_id))
            raise
        self.observer.arrived(record)
        return record

    def abort(self, request_id: str) -> None:
        """End a request, if it still runs."""
        opened = self._forget(request_id)
        if opened is None:
            return
        self._post(lambda: self.engine.abort(request_id))
        self._end(opened.record, "abort", self._clock())

    def abort_all(self) -> None:
        """End every request; their callers see the reason "abort"."""
        for request_id, opened in list(self._open.items()):
            opened.sink(Delta(request_id, finish_reason="abort"))
            self.abort(request_id)

    async def stats(self) -> EngineStats:
        """The engine's counts, read between two steps."""
        return await self._call(self.engine.stats)

    async def check(self) -> None:
        """Account for what the engine holds, between two steps; raises AssertionError."""
        await self._call(self.engine.check)

    async def forget_prefixes(self) -> None:
        """Empty the prefix cache, between two steps."""
        await self._call(self.engine.forget_prefixes)

    async def sleep(self) -> None:
        """Give the memory of the cache back until the next step."""
        await self._call(self.engine.sleep)

    async def _call(self, work: Callable[[], T]) -> T:
        if not self.is_alive:
            raise ApiError(503, f"the engine has stopped: {self.failure}", code="engine_stopped")
        done: Future[T] = Future()
        self._post(lambda: _settle(done, work))
        return await asyncio.wrap_future(done)

    def _post(self, command: Callable[[], object]) -> None:
        with self._wake:
            self._commands.append(lambda: void(command))
            self._wake.notify()

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except Exception as error:
            self.failure = error
            self._to_loop(partial(self._lose_all, error))

    def _turn(self) -> bool:
        with self._wake:
            while not (self._commands or self._closing or self.engine.has_work):
                self._wake.wait()
            if self._closing:
                return False
            commands, self._commands = self._commands, []
        for command in commands:
            command()
        if self.engine.has_work:
            deltas = self.engine.step()
            now = self._clock()
            if deltas:
                self._to_loop(lambda: self._deliver(deltas, now))
        return True

    def _to_loop(self, work: Callable[[], None]) -> None:
        assert self._loop is not None, "the front was not started"
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(work)

    def _deliver(self, deltas: Sequence[Delta], now: float) -> None:
        tokens = 0
        for delta in deltas:
            opened = self._open.get(delta.request_id)
            if opened is None:
                continue  # its caller has gone
            tokens += self._book(opened.record, delta, now)
            opened.sink(delta)
            if delta.finish_reason is not None:
                self._finish(opened, delta, now)
        self.observer.stepped(tokens, now)

    def _book(self, record: Record, delta: Delta, now: float) -> int:
        """Take tokens into a request's books; returns what the step did for it."""
        if not delta.token_ids and delta.vector is None:
            return 0
        begun = record.first_token is None
        record.cached_tokens = max(record.cached_tokens, delta.cached_tokens)
        self.observer.gave(record, delta, now)
        record.first_token = now if record.first_token is None else record.first_token
        record.last_token[delta.index] = now
        count = len(delta.token_ids)
        record.generated[delta.index] = record.generated.get(delta.index, 0) + count
        return count + (record.prompt_tokens if begun else 0)

    def _finish(self, opened: _Open, delta: Delta, now: float) -> None:
        if delta.times is not None:
            opened.record.started = delta.times.started
        opened.unfinished -= 1
        # What fails ends its whole request.
        if opened.unfinished == 0 or delta.finish_reason in ("error", "abort"):
            self._forget(delta.request_id)
            self._end(opened.record, str(delta.finish_reason), now)

    def _forget(self, request_id: str) -> _Open | None:
        opened = self._open.pop(request_id, None)
        if opened is not None:
            self.sequences -= opened.record.sequences
        return opened

    def _end(self, record: Record, reason: str, now: float) -> None:
        record.finished, record.reason = now, reason
        self.observer.ended(record)

    def _lose_all(self, error: Exception) -> None:
        """The engine itself broke: every request that it held ends with its error."""
        for request_id in list(self._open):
            opened = self._forget(request_id)
            if opened is not None:
                opened.sink(Delta(request_id, finish_reason="error", error=error))
                self._end(opened.record, "error", self._clock())


def void(command: Callable[[], object]) -> None:
    """Run a command for its effect."""
    command()


def _settle(done: Future[T], work: Callable[[], T]) -> None:
    if not done.set_running_or_notify_cancel():
        return
    try:
        done.set_result(work())
    except Exception as error:
        done.set_exception(error)
