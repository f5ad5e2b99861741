"""Prometheus metrics: names, labels and buckets are vLLM's, the prefix is `ferrule:`.

Request metrics are counted per request, whatever its number of sequences: they are observed once,
when its last sequence ends. Token counters and inter-token latencies are counted per token.
"""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from ..engine import Delta, EngineStats
from ..spread import Counts, Spread
from .front import Record

TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5)
TTFT = (*TTFT, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)
BETWEEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5)
BETWEEN = (*BETWEEN, 10.0, 20.0, 40.0, 80.0)
PHASE = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0)
PHASE = (*PHASE, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0)
STEP = tuple(float(1 << n) for n in range(15))
LABELS = ("model_name", "engine")
F = TypeVar("F", GaugeMetricFamily, CounterMetricFamily)


def lengths(longest: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50, ... up to the longest context."""
    steps = (m * 10**e for e in range(len(str(longest))) for m in (1, 2, 5))
    return tuple(float(s) for s in steps if s <= longest)


class ServerMetrics:
    """The metrics of every model on a server, in a registry of their own."""

    def __init__(self, longest: int) -> None:
        self.registry = CollectorRegistry()
        counters = {
            "prompt_tokens": "Prompt tokens of requests that gave a first token.",
            "prompt_tokens_cached": "Prompt tokens that were found in the prefix cache.",
            "generation_tokens": "Generated tokens.",
        }
        sizes = lengths(longest)
        histograms = {
            "iteration_tokens_total": ("Tokens of an engine step.", STEP),
            "request_prompt_tokens": ("Prompt tokens of a request.", sizes),
            "request_generation_tokens": ("Generated tokens of a request.", sizes),
            "request_max_num_generation_tokens": ("The longest sequence of a request.", sizes),
            "request_params_n": ("Sequences asked for.", (1.0, 2.0, 5.0, 10.0, 20.0)),
            "request_params_max_tokens": ("Tokens asked for.", sizes),
            "time_to_first_token_seconds": ("Arrival to first token.", TTFT),
            "request_time_per_output_token_seconds": ("Mean of a request's tokens.", BETWEEN),
            "e2e_request_latency_seconds": ("Arrival to the last token.", PHASE),
            "request_queue_time_seconds": ("Arrival to the first step.", PHASE),
            "request_prefill_time_seconds": ("First step to first token.", PHASE),
            "request_decode_time_seconds": ("First token to last token.", PHASE),
            "request_inference_time_seconds": ("First step to last token.", PHASE),
            "request_prefill_kv_computed_tokens": ("Prompt tokens computed.", sizes),
        }
        self.counters = {
            name: Counter(f"ferrule:{name}", text, LABELS, registry=self.registry)
            for name, text in counters.items()
        }
        self.by_source = Counter(
            "ferrule:prompt_tokens_by_source",
            "Prompt tokens by where their keys and values come from.",
            (*LABELS, "source"),
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)
        self.success = Counter(
            "ferrule:request_success",
            "Requests that ended.",
            (*LABELS, "finished_reason"),
            registry=self.registry,
        )
        self.between: dict[str, Spread] = {}
        self.registry.register(_Between(self.between))
        self.histograms = {
            name: Histogram(
                f"ferrule:{name}", text, LABELS, buckets=buckets, registry=self.registry
            )
            for name, (text, buckets) in histograms.items()
        }

    def of(self, model: str) -> "ModelMetrics":
        """The metrics of one model, an observer for its front."""
        between = self.between.setdefault(model, Spread(BETWEEN))
        return ModelMetrics(self, {"model_name": model, "engine": "0"}, between)


class _Between(Collector):
    """The histogram of what every token adds to, which prometheus_client's own would count a lock
    and a search of all buckets at a time.
    """

    def __init__(self, spreads: Mapping[str, Spread]) -> None:
        self._spreads = spreads

    def collect(self) -> Iterable[Metric]:
        """The family, a sample for each model."""
        counts = {model: spread.counts() for model, spread in self._spreads.items()}
        yield _histogram("inter_token_latency_seconds", "From token to token.", counts)


class ModelMetrics:
    """Observes the events of one front."""

    def __init__(self, server: ServerMetrics, labels: Mapping[str, str], between: Spread) -> None:
        self._between, self._generated = between, 0
        self._success = server.success
        self._by_source = server.by_source
        self._labels = dict(labels)
        self._counters = {n: c.labels(**labels) for n, c in server.counters.items()}
        self._histograms = {n: h.labels(**labels) for n, h in server.histograms.items()}

    def arrived(self, record: Record) -> None:
        """Nothing is counted before a request gives something."""

    def gave(self, record: Record, delta: Delta, now: float) -> None:
        """Count tokens, and the time since those before them."""
        if record.first_token is None:
            self._counters["prompt_tokens"].inc(record.prompt_tokens)
            self._counters["prompt_tokens_cached"].inc(record.cached_tokens)
            computed = record.prompt_tokens - record.cached_tokens
            self._of("local_compute").inc(computed)
            self._of("local_cache_hit").inc(record.cached_tokens)
            self._observe("time_to_first_token_seconds", now - record.arrived)
        before = record.last_token.get(delta.index)
        if before is not None:
            self._between.add(now - before)
        self._generated += len(delta.token_ids)

    def _of(self, source: str) -> Counter:
        return self._by_source.labels(**self._labels, source=source)

    def stepped(self, tokens: int, now: float) -> None:
        """Count the tokens of a step, those generated all at once."""
        self._counters["generation_tokens"].inc(self._generated)
        self._generated = 0
        self._observe("iteration_tokens_total", tokens)

    def ended(self, record: Record) -> None:
        """Count a request, its sizes and the time of each of its phases."""
        self._success.labels(**self._labels, finished_reason=record.reason).inc()
        self._observe("request_prompt_tokens", record.prompt_tokens)
        self._observe("request_generation_tokens", record.generated_tokens)
        longest = max(record.generated.values(), default=0)
        self._observe("request_max_num_generation_tokens", longest)
        self._observe("request_params_n", record.sequences)
        if record.max_tokens is not None:
            self._observe("request_params_max_tokens", record.max_tokens)
        if record.finished is not None and record.first_token is not None:
            self._observe_times(record, record.first_token, record.finished)

    def _observe_times(self, record: Record, first: float, finished: float) -> None:
        computed = record.prompt_tokens - record.cached_tokens
        self._observe("request_prefill_kv_computed_tokens", computed)
        self._observe("e2e_request_latency_seconds", finished - record.arrived)
        self._observe("request_decode_time_seconds", finished - first)
        longest = max(record.generated.values())
        if longest > 1:
            mean = (finished - first) / (longest - 1)
            self._observe("request_time_per_output_token_seconds", mean)
        if record.started is not None:
            self._observe("request_queue_time_seconds", record.started - record.arrived)
            self._observe("request_prefill_time_seconds", first - record.started)
            self._observe("request_inference_time_seconds", finished - record.started)

    def _observe(self, name: str, value: float) -> None:
        self._histograms[name].observe(value)


class EngineCollector(Collector):
    """Metrics that are read off engines when somebody asks for them."""

    def __init__(
        self,
        stats: Mapping[str, EngineStats],
        configs: Mapping[str, Mapping[str, str]],
        startups: Mapping[str, float],
        *,
        ready: bool,
        asleep: bool,
    ) -> None:
        self._stats, self._configs = stats, configs
        self._ready, self._asleep = ready, asleep
        self._startups = startups

    def collect(self) -> Iterable[Metric]:
        """A family for each number of `EngineStats`, a sample for each model."""
        for name, text, value in _GAUGES:
            yield self._filled(GaugeMetricFamily(f"ferrule:{name}", text, labels=LABELS), value)
        for name, text, value in _COUNTERS:
            yield self._filled(CounterMetricFamily(f"ferrule:{name}", text, labels=LABELS), value)
        yield from self._spreads()
        yield self._waiting()
        started = GaugeMetricFamily("ferrule:engine_startup_time", _STARTUP, labels=LABELS)
        for model, seconds in self._startups.items():
            started.add_metric((model, "0"), seconds)
        yield started
        sleeps = GaugeMetricFamily(
            "ferrule:engine_sleep_state", _SLEEP, labels=(*LABELS, "sleep_state")
        )
        for model in self._stats:
            sleeps.add_metric((model, "0", "awake"), int(not self._asleep))
            sleeps.add_metric((model, "0", "asleep"), int(self._asleep))
        yield sleeps
        yield GaugeMetricFamily("ferrule:ready", "1 while requests are taken.", int(self._ready))
        for model, config in self._configs.items():
            names = {"model_name": model, "engine": "0", **config}
            info = GaugeMetricFamily("ferrule:cache_config_info", _CONFIG, labels=list(names))
            info.add_metric(list(names.values()), 1)
            yield info

    def _spreads(self) -> Iterable[Metric]:
        for name, text in _SPREADS.items():
            seen = {m: s.spreads[name] for m, s in self._stats.items() if name in s.spreads}
            yield _histogram(name, text, seen)

    def _waiting(self) -> Metric:
        """Why sequences wait: they have not run yet, or others took their place."""
        family = GaugeMetricFamily(
            "ferrule:num_requests_waiting_by_reason",
            "Sequences that wait, by the reason.",
            labels=(*LABELS, "reason"),
        )
        for model, stats in self._stats.items():
            family.add_metric((model, "0", "capacity"), stats.waiting - stats.preempted)
            family.add_metric((model, "0", "preempted"), stats.preempted)
        return family

    def _filled(self, family: F, value: str) -> F:
        for model, stats in self._stats.items():
            number = usage(stats) if value == "usage" else getattr(stats, value)
            family.add_metric((model, "0"), number)
        return family


def _histogram(name: str, text: str, seen: Mapping[str, Counts]) -> HistogramMetricFamily:
    """A family of counts by model."""
    family = HistogramMetricFamily(f"ferrule:{name}", text, labels=LABELS)
    for model, counts in seen.items():
        each = zip(counts.bounds, counts.below, strict=True)
        buckets = [(str(bound), float(below)) for bound, below in each]
        family.add_metric((model, "0"), [*buckets, ("+Inf", float(counts.seen))], counts.total)
    return family


def usage(stats: EngineStats) -> float:
    """The share of the KV cache's blocks that sequences hold, 0 to 1."""
    blocks = stats.blocks_used + stats.blocks_cached + stats.blocks_free
    return stats.blocks_used / blocks if blocks else 0.0


_STARTUP = "Seconds from the artifact's files to an engine that serves."
_SLEEP = "1 for the state that an engine is in: its cache has memory, or has not."
_SPREADS = {
    "kv_block_lifetime_seconds": "From when a block is taken to when its content is given up.",
    "kv_block_idle_before_evict_seconds": "From a block's last holder to when it is given up.",
    "kv_block_reuse_gap_seconds": "From a block's last holder to the next one of its content.",
    "grammar_compilation_time_seconds": "To compile a grammar.",
}
_CONFIG = "How the engine of a model was made, as labels."
_GAUGES = (
    ("num_requests_running", "Sequences in the running batch.", "running"),
    ("num_requests_waiting", "Sequences that wait for a place in it.", "waiting"),
    ("kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1.", "usage"),
    ("kv_blocks_used", "KV blocks that sequences hold.", "blocks_used"),
    ("kv_blocks_cached", "KV blocks kept for prompts to come.", "blocks_cached"),
    ("kv_blocks_free", "KV blocks without content worth keeping.", "blocks_free"),
)
_COUNTERS = (
    ("engine_steps", "Steps run.", "steps"),
    ("num_preemptions", "Sequences put back into the queue.", "preemptions"),
    ("num_swaps", "Those of them that kept their blocks on the host.", "swaps"),
    ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", "prefix_queries"),
    ("prefix_cache_hits", "Prompt tokens found in the prefix cache.", "prefix_hits"),
    ("corrupted_requests", "Requests whose logits were no numbers.", "corrupted"),
    ("prefix_cache_evictions", "Cached blocks given away for others.", "evictions"),
)
