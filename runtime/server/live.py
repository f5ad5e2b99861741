"""The last minute of a model, for the page: tokens a second, percentiles of latencies."""

from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..engine import Delta
from .front import Record

SECONDS = 60.0
_MOST = 20_000  # samples kept of each kind: a bound on memory, far above what a page shows


class LiveWindow:
    """Observes a front and keeps what happened in the last minute."""

    def __init__(self) -> None:
        self._tokens: deque[tuple[float, int]] = deque(maxlen=_MOST)
        self._first: deque[tuple[float, float]] = deque(maxlen=_MOST)
        self._between: deque[tuple[float, float]] = deque(maxlen=_MOST)
        self.ended_requests = 0

    def arrived(self, record: Record) -> None:
        """An arrival shows in the engine's own counts."""

    def gave(self, record: Record, delta: Delta, now: float) -> None:
        """Keep the latency of a token and that it came."""
        if record.first_token is None:
            self._first.append((now, now - record.arrived))
        before = record.last_token.get(delta.index)
        if before is not None:
            self._between.append((now, now - before))
        self._tokens.append((now, len(delta.token_ids)))

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


def _percentiles(samples: Iterable[tuple[float, float]], now: float) -> dict[str, float] | None:
    values = [value * 1000 for at, value in samples if at > now - SECONDS]
    if not values:
        return None
    p50, p90, p99 = np.percentile(values, (50, 90, 99))
    return {"p50": float(p50), "p90": float(p90), "p99": float(p99)}
