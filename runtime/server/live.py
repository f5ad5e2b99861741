"""The last minute of a model, for the page: tokens a second, percentiles of latencies."""

from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..engine import Delta
from .front import Record

SECONDS = 60.0
_MOST = 20_000  # samples kept of each kind: a bound on memory, far above what a page shows
_Samples = deque[tuple[float, float]]


class LiveWindow:
    """Observes a front and keeps what happened in the last minute."""

    def __init__(self) -> None:
        self._tokens: _Samples = deque(maxlen=_MOST)
        self._first: _Samples = deque(maxlen=_MOST)
        self._between: _Samples = deque(maxlen=_MOST)
        self.ended_requests = 0

    def arrived(self, record: Record) -> None:
        """An arrival shows in the engine's own counts."""

    def gave(self, record: Record, delta: Delta, now: float) -> None:
        """Keep the latency of a token and that it came."""
        if record.first_token is None:
            _keep(self._first, now, now - record.arrived)
        before = record.last_token.get(delta.index)
        if before is not None:
            _keep(self._between, now, now - before)
        _keep(self._tokens, now, len(delta.token_ids))

    def stepped(self, tokens: int, now: float) -> None:
        """Steps show in the engine's own counts."""

    def ended(self, record: Record) -> None:
        """Count a request."""
        self.ended_requests += 1

    def summary(self, now: float) -> dict[str, Any]:
        """Tokens a second over the last five seconds, and percentiles over the last minute."""
        recent = sum(count for at, count in self._tokens if at > now - 5.0)
        return {
            "tokens_per_second": recent / 5.0,
            "requests_ended": self.ended_requests,
            "time_to_first_token_ms": _percentiles(self._first, now),
            "inter_token_latency_ms": _percentiles(self._between, now),
        }


class Observers:
    """Several observers as one."""

    def __init__(self, *each: Any) -> None:
        self._each = each

    def arrived(self, record: Record) -> None:
        """Tell every observer."""
        for observer in self._each:
            observer.arrived(record)

    def gave(self, record: Record, delta: Delta, now: float) -> None:
        """Tell every observer."""
        for observer in self._each:
            observer.gave(record, delta, now)

    def stepped(self, tokens: int, now: float) -> None:
        """Tell every observer."""
        for observer in self._each:
            observer.stepped(tokens, now)

    def ended(self, record: Record) -> None:
        """Tell every observer."""
        for observer in self._each:
            observer.ended(record)


def _keep(samples: _Samples, now: float, value: float) -> None:
    """Add a sample, and let go of those that are too old to be shown."""
    samples.append((now, value))
    while samples[0][0] <= now - SECONDS:
        samples.popleft()


def _percentiles(samples: Iterable[tuple[float, float]], now: float) -> dict[str, float] | None:
    values = [value * 1000 for at, value in samples if at > now - SECONDS]
    if not values:
        return None
    p50, p90, p99 = np.percentile(values, (50, 90, 99))
    return {"p50": float(p50), "p90": float(p90), "p99": float(p99)}
