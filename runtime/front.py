"""Lets several callers share one engine: whoever waits for its own request steps for all."""

import threading
from collections import deque
from collections.abc import Iterator, Sequence

from .engine import Completion, Delta, Engine
from .errors import RequestError
from .sampling import SamplingParams


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

    def submit(self, prompt: str | Sequence[int], params: SamplingParams | None) -> str:
        """Queue a request; whoever submits it ends it with `close`."""
        with self._lock:
            request_id = self.engine.submit(prompt, params)
            self._inboxes[request_id] = deque()
            self._prompts[request_id] = self.engine.prompt_of(request_id)
            return request_id

    def deltas(self, request_id: str) -> Iterator[Delta]:
        """The pieces of a request, to its end; its error is raised."""
        inbox = self._inboxes[request_id]
        while True:
            delta = self._next(inbox)
            if delta.error is not None:
                raise delta.error
            yield delta
            if delta.finish_reason is not None:
                return

    def _next(self, inbox: deque[Delta]) -> Delta:
        with self._lock:
            while not inbox:
                if not self.engine.has_work:
                    raise RequestError("the request was ended by someone else")
                for delta in self.engine.step():
                    self._inboxes[delta.request_id].append(delta)
            return inbox.popleft()

    def complete(self, request_id: str) -> Completion:
        """The whole of a request."""
        deltas = list(self.deltas(request_id))
        tokens = tuple(t for delta in deltas for t in delta.token_ids)
        reason = deltas[-1].finish_reason
        assert reason is not None, f"{request_id} ended without a reason"
        return Completion(
            tokens, "".join(delta.text for delta in deltas), reason, self._prompts[request_id]
        )

    def close(self, request_id: str) -> None:
        """Forget a request, and end it if it still runs."""
        with self._lock:
            self._inboxes.pop(request_id, None)
            self._prompts.pop(request_id, None)
            self.engine.abort(request_id)
