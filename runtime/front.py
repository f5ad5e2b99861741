"""Lets several callers share one engine: whoever waits for its own request steps for all."""

import threading
from collections import deque
from collections.abc import Iterator, Sequence

from .engine import Completion, Delta, Engine
from .errors import RequestError
from .sampling import SamplingParams
from .tensors import Array


class Front:
    """Requests of any thread over one engine, batched together.

    Nothing runs by itself: a caller that waits for its request steps the engine, and what the step
    gives to other requests is kept for them.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._lock = threading.Lock()
        self._inboxes: dict[str, deque[Delta]] = {}
        self._prompts: dict[str, tuple[int, ...]] = {}
        self._counts: dict[str, int] = {}

    def submit(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None,
        *,
        client: str = "",
        priority: int = 0,
        cache_salt: str = "",
    ) -> str:
        """Queue a request; whoever submits it ends it with `close`."""
        with self._lock:
            request_id = self.engine.submit(
                prompt, params, client=client, priority=priority, cache_salt=cache_salt
            )
            self._inboxes[request_id] = deque()
            self._prompts[request_id] = self.engine.prompt_of(request_id)
            self._counts[request_id] = params.n if params else 1
            return request_id

    def deltas(self, request_id: str) -> Iterator[Delta]:
        """The pieces of a request, to the end of its last sequence; its error is raised."""
        inbox, unfinished = self._inboxes[request_id], self._counts[request_id]
        while unfinished:
            delta = self._next(inbox)
            if delta.error is not None:
                raise delta.error
            yield delta
            if delta.finish_reason == "abort":
                return
            unfinished -= delta.finish_reason is not None

    def _next(self, inbox: deque[Delta]) -> Delta:
        with self._lock:
            while not inbox:
                if not self.engine.has_work:
                    raise RequestError("the request was ended by someone else")
                for delta in self.engine.step():
                    self._inboxes[delta.request_id].append(delta)
            return inbox.popleft()

    def complete(self, request_id: str) -> Completion:
        """The whole of a request; of one with several sequences, the first."""
        return self.completions(request_id)[0]

    def completions(self, request_id: str) -> tuple[Completion, ...]:
        """The whole of a request, a completion for each of its sequences."""
        parts: dict[int, list[Delta]] = {}
        for delta in self.deltas(request_id):
            parts.setdefault(delta.index, []).append(delta)
        prompt = self._prompts[request_id]
        return tuple(_joined(deltas, prompt) for _, deltas in sorted(parts.items()))

    def vector(self, request_id: str) -> Array:
        """The vector of a request to an engine that pools."""
        (delta,) = self.deltas(request_id)
        if delta.vector is None:
            raise RequestError("the request was ended by someone else")
        return delta.vector

    def close(self, request_id: str) -> None:
        """Forget a request, and end it if it still runs."""
        with self._lock:
            self._inboxes.pop(request_id, None)
            self._prompts.pop(request_id, None)
            self._counts.pop(request_id, None)
            self.engine.abort(request_id)


def _joined(deltas: list[Delta], prompt: tuple[int, ...]) -> Completion:
    last = deltas[-1]
    assert last.finish_reason is not None, f"{last.request_id} ended without a reason"
    tokens = tuple(t for delta in deltas for t in delta.token_ids)
    scores = tuple(entry for delta in deltas for entry in delta.logprobs or ())
    return Completion(
        tokens,
        "".join(delta.text for delta in deltas),
        last.finish_reason,
        prompt,
        index=last.index,
        logprobs=scores or None,
        cumulative_logprob=sum(s[t].logprob for s, t in zip(scores, tokens, strict=True))
        if scores
        else None,
        prompt_logprobs=deltas[0].prompt_logprobs,
        cached_tokens=last.cached_tokens,
        stop_reason=last.stop_reason,
        times=last.times,
    )
