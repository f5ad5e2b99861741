"""Metrics equal the truth of a trace that is replayed on a clock of its own."""

import asyncio
import math
import random

import pytest
from ferrule.runtime.block_times import BlockTimes
from ferrule.runtime.blocks import BlockPool
from ferrule.runtime.engine import Delta, EngineStats, Times
from ferrule.runtime.sampling import SamplingParams
from ferrule.runtime.server.front import EngineFront
from ferrule.runtime.server.live import LiveWindow
from ferrule.runtime.server.metrics import (
    BETWEEN,
    PHASE,
    TTFT,
    EngineCollector,
    ServerMetrics,
    lengths,
)
from ferrule.runtime.spread import Counts, Spread
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from test_errors import post

LABELS = {"model_name": "m", "engine": "0"}


class Replay:
    """An engine that gives what a trace says, step by step, and moves the clock by each step."""

    def __init__(self, steps):
        self.steps, self.now, self.waiting = steps, 100.0, set()

    @property
    def has_work(self):
        return len(self.waiting) == 12 and bool(self.steps)

    def submit(self, prompt, params, request_id, **options):
        self.waiting.add(request_id)
        self.now += 0.25
        return request_id

    def step(self):
        seconds, deltas = self.steps.pop(0)
        self.now += seconds
        return deltas

    def abort(self, request_id):
        return None

    def stats(self):
        return EngineStats(3, 2, 10, 5, 85, 7, 1, 4, 60, 20, 0, 0)


def trace(seed):
    """Steps of random lengths over twelve requests, and what each of them gets."""
    generator = random.Random(seed)
    left = {str(n): generator.randint(1, 9) for n in range(12)}
    steps = []
    while left:
        chosen = [name for name in left if generator.random() < 0.6]
        deltas = []
        for name in chosen:
            left[name] -= 1
            reason = None if left[name] else generator.choice(["stop", "length"])
            times = Times(100.0, 101.0 + int(name)) if reason else None
            deltas.append(Delta(name, (1,), "x", reason, cached_tokens=int(name), times=times))
            if reason:
                del left[name]
        steps.append((generator.choice([0.004, 0.03, 0.2, 1.5]), deltas))
    return steps


async def replay(steps, observer):
    engine = Replay(list(steps))
    front = EngineFront(engine, observer, limit=99, clock=lambda: engine.now)
    front.start()
    for n in range(12):
        params = SamplingParams(max_tokens=40 + n)
        await front.submit(str(n), [1] * (n + 1), params, lambda delta: None)
    while front.requests:
        await asyncio.sleep(0.001)
    await asyncio.to_thread(front.close)


def truth(steps):
    """Every number that the metrics should show, computed from the trace alone."""
    now, arrived = 100.0, {}
    for n in range(12):
        arrived[str(n)] = now
        now += 0.25
    first, last, count, found = {}, {}, {}, {"between": [], "ttft": [], "e2e": [], "steps": []}
    found |= {"decode": [], "queue": [], "mean": [], "reasons": []}
    for seconds, deltas in steps:
        now += seconds
        size = 0
        for delta in deltas:
            name = delta.request_id
            if name not in first:
                first[name] = now
                found["ttft"].append(now - arrived[name])
                size += int(name) + 1
            else:
                found["between"].append(now - last[name])
            last[name] = now
            size += 1
            count[name] = count.get(name, 0) + 1
            if delta.finish_reason:
                found["reasons"].append(delta.finish_reason)
                found["e2e"].append(now - arrived[name])
                found["decode"].append(now - first[name])
                found["queue"].append(101.0 + int(name) - arrived[name])
                if count[name] > 1:
                    found["mean"].append((now - first[name]) / (count[name] - 1))
        if deltas:
            found["steps"].append(size)
    return found | {"count": count}


def check_histogram(registry, name, buckets, values):
    """Every bucket, the count and the sum."""
    for bound in (*buckets, math.inf):
        edge = "+Inf" if bound == math.inf else repr(float(bound))
        given = registry.get_sample_value(f"ferrule:{name}_bucket", LABELS | {"le": edge})
        assert given == sum(v <= bound for v in values), (name, bound)
    assert registry.get_sample_value(f"ferrule:{name}_count", LABELS) == len(values)
    total = registry.get_sample_value(f"ferrule:{name}_sum", LABELS)
    assert total == pytest.approx(sum(values), rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_a_replayed_trace(seed):
    steps, metrics = trace(seed), ServerMetrics(128)
    asyncio.run(replay(steps, metrics.of("m")))
    wanted, registry = truth(steps), metrics.registry
    sizes = lengths(128)
    assert sizes == (1, 2, 5, 10, 20, 50, 100)
    for name, buckets, values in (
        ("time_to_first_token_seconds", TTFT, wanted["ttft"]),
        ("inter_token_latency_seconds", BETWEEN, wanted["between"]),
        ("request_time_per_output_token_seconds", BETWEEN, wanted["mean"]),
        ("e2e_request_latency_seconds", PHASE, wanted["e2e"]),
        ("request_decode_time_seconds", PHASE, wanted["decode"]),
        ("request_queue_time_seconds", PHASE, wanted["queue"]),
        ("request_prompt_tokens", sizes, range(1, 13)),
        ("request_generation_tokens", sizes, wanted["count"].values()),
        ("request_prefill_kv_computed_tokens", sizes, [1] * 12),
        ("request_params_max_tokens", sizes, range(40, 52)),
        ("iteration_tokens_total", (1, 2, 4, 8, 16, 32), wanted["steps"]),
    ):
        check_histogram(registry, name, buckets, list(values))
    totals = {
        "prompt_tokens_total": sum(range(1, 13)),
        "prompt_tokens_cached_total": sum(range(12)),
        "generation_tokens_total": sum(wanted["count"].values()),
    }
    for name, total in totals.items():
        assert registry.get_sample_value(f"ferrule:{name}", LABELS) == total
    for source, total in (("local_cache_hit", sum(range(12))), ("local_compute", 12)):
        labels = LABELS | {"source": source}
        given = registry.get_sample_value("ferrule:prompt_tokens_by_source_total", labels)
        assert given == total
    for reason in ("stop", "length"):
        labels = LABELS | {"finished_reason": reason}
        given = registry.get_sample_value("ferrule:request_success_total", labels)
        assert (given or 0) == wanted["reasons"].count(reason)


def test_queue_prefill_and_decode_make_the_whole():
    metrics = ServerMetrics(128)
    asyncio.run(replay(trace(7), metrics.of("m")))

    def total(name):
        return metrics.registry.get_sample_value(f"ferrule:{name}_sum", LABELS)

    phases = ("request_queue_time", "request_prefill_time", "request_decode_time")
    whole = sum(total(f"{phase}_seconds") for phase in phases)
    assert whole == pytest.approx(total("e2e_request_latency_seconds"), rel=1e-9)


def test_the_live_window_forgets():
    live = LiveWindow()
    asyncio.run(replay(trace(1), live))
    assert live.ended_requests == 12
    late = live.summary(10_000.0)
    assert late["time_to_first_token_ms"] is None and late["tokens_per_second"] == 0


def test_a_scrape_has_every_family(server):
    from test_status import get

    post(server, "/v1/completions", {"prompt": "a", "max_tokens": 3})
    families = {
        f.name: f for f in text_string_to_metric_families(get(server, "/metrics")[1].decode())
    }
    gauges = {"num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"}
    counters = {"num_preemptions", "prompt_tokens", "generation_tokens", "request_success"}
    counters |= {"prefix_cache_queries", "prefix_cache_hits", "prompt_tokens_cached"}
    counters |= {"corrupted_requests", "prompt_tokens_by_source"}
    gauges |= {"num_requests_waiting_by_reason", "engine_startup_time"}
    gauges |= {"kv_block_lifetime_seconds", "kv_block_idle_before_evict_seconds"}
    gauges |= {"kv_block_reuse_gap_seconds", "grammar_compilation_time_seconds"}
    for name in gauges | counters:
        assert f"ferrule:{name}" in families, name
    assert "process_resident_memory_bytes" in families
    for sample in families["ferrule:kv_cache_usage_perc"].samples:
        assert set(sample.labels) == {"model_name", "engine"}
    (fox,) = (
        s.value for s in families["ferrule:generation_tokens"].samples
        if s.labels.get("model_name") == "fox" and s.name.endswith("_total")
    )  # fmt: skip
    assert fox == 3


def test_blocks_are_followed():
    now = [10.0]
    pool = BlockPool(2)
    pool.times = BlockTimes(2, lambda: now[0])
    (first,) = pool.allocate(1)
    pool.name(first, b"a")
    now[0] = 11.0
    pool.release([first])
    now[0] = 11.5
    pool.retain(pool.find([b"a"]))
    pool.release([first])
    now[0] = 14.0
    pool.allocate(2)
    times = pool.times
    assert times.gap.counts().total == 0.5 and times.gap.counts().seen == 1
    assert (times.idle.counts().total, times.lifetime.counts().total) == (2.5, 4.0)


def test_buckets_count_what_is_at_most_so_large():
    spread = Spread((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        spread.add(value)
    assert spread.counts() == Counts((1.0, 2.0), (2, 3), 4, 12.0)


def test_histograms_of_an_engine_are_scraped():
    seen = Counts((1.0, 2.0), (2, 3), 4, 12.0)
    stats = EngineStats(
        1, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, preempted=1,
        spreads={"kv_block_lifetime_seconds": seen},
    )  # fmt: skip
    registry = CollectorRegistry()
    registry.register(EngineCollector({"m": stats}, {}, {"m": 2.5}, ready=True, asleep=False))

    def value(name, **labels):
        return registry.get_sample_value(f"ferrule:{name}", LABELS | labels)

    assert value("kv_block_lifetime_seconds_bucket", le="2.0") == 3
    assert value("kv_block_lifetime_seconds_bucket", le="+Inf") == 4
    assert value("kv_block_lifetime_seconds_sum") == 12
    assert value("num_requests_waiting_by_reason", reason="preempted") == 1
    assert value("num_requests_waiting_by_reason", reason="capacity") == 2
    assert value("engine_startup_time") == 2.5
