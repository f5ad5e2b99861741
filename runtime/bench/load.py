"""`ferrule bench serve`: a server under load, with Poisson arrivals; fields are vLLM's."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .http import HttpError, Target
from .prompts import Ask
from .statistics import summary

METRICS = ("ttft", "tpot", "itl", "e2el")


@dataclass(frozen=True)
class Ramp:
    """A rate of requests that goes from one to another, evenly or by the same factor."""

    strategy: str
    begin: float
    end: float

    def rate(self, share: float) -> float:
        """The rate when a share of the requests, 0 to 1, has been sent."""
        if self.strategy == "linear":
            return self.begin + (self.end - self.begin) * share
        return self.begin * (self.end / self.begin) ** share


@dataclass(frozen=True)
class Load:
    """How requests arrive. A `rate` of infinity sends all at once.

    Gaps follow a gamma distribution: `burstiness` 1 is a Poisson process, less comes in bursts.
    `goodput` holds limits in milliseconds for "ttft", "tpot" and "e2el". `metrics` are reported.
    With a `ramp` the rate changes, `extra` are more fields of every body.
    """

    model: str | None = None
    endpoint: str = "/v1/completions"
    rate: float = float("inf")
    burstiness: float = 1.0
    max_concurrency: int | None = None
    ignore_eos: bool = False
    temperature: float = 0.0
    warmups: int = 0
    seed: int = 0
    percentiles: tuple[float, ...] = (99.0,)
    metrics: tuple[str, ...] = METRICS
    ramp: Ramp | None = None
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    goodput: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(eq=False)
class Served:
    """One request as its client saw it; times are seconds."""

    input_tokens: int
    started: float
    first: float | None = None
    gaps: list[float] = field(default_factory=list[float])
    ended: float = 0.0
    output_tokens: int = 0
    text: str = ""
    error: str = ""
    token_times: list[float] = field(default_factory=list[float])

    @property
    def ttft(self) -> float:
        """Seconds to the first token."""
        return (self.first or self.ended) - self.started

    @property
    def e2el(self) -> float:
        """Seconds to the end."""
        return self.ended - self.started

    @property
    def tpot(self) -> float:
        """Mean seconds of a token after the first one."""
        return (self.e2el - self.ttft) / max(1, self.output_tokens - 1)


async def measure(target: Target, asks: Sequence[Ask], load: Load) -> dict[str, Any]:
    """Send every ask and report."""
    for ask in asks[: load.warmups]:
        await _send(target, ask, load)
    gate = asyncio.Semaphore(load.max_concurrency or len(asks))
    begun = time.perf_counter()
    tasks = []
    for ask, at in zip(asks, arrivals(load, len(asks)), strict=True):
        await asyncio.sleep(max(0.0, begun + at - time.perf_counter()))
        tasks.append(asyncio.create_task(_send_in_turn(gate, target, ask, load)))
    served = await asyncio.gather(*tasks)
    return report(served, time.perf_counter() - begun, load)


def arrivals(load: Load, count: int) -> list[float]:
    """Seconds after the start at which requests are sent."""
    if load.ramp is None and load.rate == float("inf"):
        return [0.0] * count
    generator = np.random.default_rng(load.seed)
    rates = np.full(count, load.rate)
    if load.ramp is not None:
        rates = np.array([load.ramp.rate(n / max(1, count - 1)) for n in range(count)])
    gaps = generator.gamma(load.burstiness, 1.0 / (rates * load.burstiness), count)
    return [float(t) for t in np.cumsum(gaps) - gaps[0]]


async def _send_in_turn(gate: asyncio.Semaphore, target: Target, ask: Ask, load: Load) -> Served:
    async with gate:
        return await _send(target, ask, load)


async def _send(target: Target, ask: Ask, load: Load) -> Served:
    served = Served(0, time.perf_counter())
    try:
        async with target.post(load.endpoint, _body(ask, load)) as answer:
            async for event in answer.events():
                _take(served, event, time.perf_counter())
    except (HttpError, OSError, asyncio.IncompleteReadError, ValueError) as error:
        served.error = str(error) or type(error).__name__
    served.ended = time.perf_counter()
    return served


def _body(ask: Ask, load: Load) -> dict[str, Any]:
    body: dict[str, Any] = {
        "max_tokens": ask.output_tokens,
        "temperature": load.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if "chat" in load.endpoint:
        body["messages"] = [{"role": "user", "content": ask.prompt}]
    else:
        body["prompt"] = ask.prompt if isinstance(ask.prompt, str) else list(ask.prompt)
    body |= {"model": load.model} if load.model else {}
    return body | ({"ignore_eos": True} if load.ignore_eos else {}) | dict(load.extra)


def _take(served: Served, event: Mapping[str, Any], now: float) -> None:
    if usage := event.get("usage"):
        served.input_tokens = usage["prompt_tokens"]
        served.output_tokens = usage["completion_tokens"]
    for choice in event["choices"]:
        text = choice["text"] if "text" in choice else choice["delta"].get("content")
        if text is None or (not text and choice.get("finish_reason") is None):
            continue
        if served.first is None:
            served.first = now
        else:
            served.gaps.append(now - served.token_times[-1])
        served.token_times.append(now)
        served.text += text


def report(served: Sequence[Served], duration: float, load: Load) -> dict[str, Any]:
    """The fields of vLLM's result file."""
    good = [s for s in served if not s.error]
    inputs, outputs = sum(s.input_tokens for s in good), sum(s.output_tokens for s in good)
    found: dict[str, Any] = {
        "duration": duration,
        "completed": len(good),
        "failed": len(served) - len(good),
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "request_throughput": len(good) / duration,
        "request_goodput": sum(_is_good(s, load.goodput) for s in good) / duration
        if load.goodput
        else None,
        "output_throughput": outputs / duration,
        "total_token_throughput": (inputs + outputs) / duration,
        "max_output_tokens_per_s": _peak(good),
        "max_concurrent_requests": _concurrent(served),
    }
    seconds = {
        "ttft": [s.ttft for s in good],
        "tpot": [s.tpot for s in good if s.output_tokens > 1],
        "itl": [gap for s in good for gap in s.gaps],
        "e2el": [s.e2el for s in good],
    }
    for name in load.metrics:
        found |= summary(name, seconds[name], load.percentiles)
    return found | {
        "input_lens": [s.input_tokens for s in served],
        "output_lens": [s.output_tokens for s in served],
        "ttfts": [s.ttft for s in served],
        "itls": [s.gaps for s in served],
        "start_times": [s.started for s in served],
        "generated_texts": [s.text for s in served],
        "errors": [s.error for s in served],
    }


def _is_good(served: Served, limits: Mapping[str, float]) -> bool:
    given = {"ttft": served.ttft, "tpot": served.tpot, "e2el": served.e2el}
    return all(given[name] * 1000 <= limit for name, limit in limits.items())


def _peak(served: Sequence[Served]) -> float:
    """The most tokens that came in one second of the clock."""
    times = np.array([t for s in served for t in s.token_times])
    if not times.size:
        return 0.0
    return float(np.bincount((times - times.min()).astype(np.int64)).max())


def _concurrent(served: Sequence[Served]) -> int:
    """The most requests that were open at once."""
    changes = sorted([(s.started, 1) for s in served] + [(s.ended, -1) for s in served])
    return int(np.max(np.cumsum([change for _, change in changes]), initial=0))
