"""What continuous batching gives an artifact, without a server in between.

    python -m benchmarks.serving DIR [pace prefix pool schedule] [--threads 2]

pace      four sequences that decode while a prompt of 2,000 tokens is read: the time from token to
          token, the 99th percentile over the median, of the whole run
prefix    seconds to the first token of a prompt of 1,000 and 16 tokens, the 1,000 known or not
pool      the share of a pool's blocks that sequences hold while others wait; nothing is computed
schedule  milliseconds of planning and committing a step of 256 sequences that decode
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from ferrule.runtime.artifact import Artifact, load
from ferrule.runtime.blocks import BlockPool
from ferrule.runtime.engine import Engine
from ferrule.runtime.options import EngineOptions
from ferrule.runtime.params import SamplingParams
from ferrule.runtime.scheduler import Scheduler
from ferrule.runtime.sequence import Sequence as Scheduled

from .batching import trace

Ask = tuple[list[int], int]  # a prompt and the tokens of its output


def _ids(draw: random.Random, vocabulary: int, count: int) -> list[int]:
    return [draw.randrange(vocabulary) for _ in range(count)]


def greedy(count: int) -> SamplingParams:
    """So many tokens, whatever they are."""
    return SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False)


def served(engine: Engine, asks: Sequence[Ask]) -> tuple[float, int]:
    """Seconds and output tokens of requests that are all there at once."""
    for prompt, count in asks:
        engine.submit(prompt, greedy(count))
    begun, tokens = time.perf_counter(), 0
    while engine.has_work:
        tokens += sum(len(delta.token_ids) for delta in engine.step())
    return time.perf_counter() - begun, tokens


def warmed(artifact: Artifact, pace: float | None) -> Engine:
    """An engine that has seen steps of every kind, so that it knows what they cost."""
    engine = artifact.new_engine(EngineOptions(prefix_caching=False, pace=pace))
    draw = random.Random(99)
    served(engine, [(_ids(draw, engine.runner.vocabulary, 32), 4) for _ in range(4)])
    return engine


def pace_of(artifact: Artifact, pace: float | None) -> list[str]:
    """Times between tokens of decodes with a long prompt in their midst."""
    engine = warmed(artifact, pace)
    draw, vocabulary = random.Random(2), engine.runner.vocabulary
    names = {engine.submit(_ids(draw, vocabulary, 64), greedy(2000)) for _ in range(4)}
    times: list[float] = []
    while len(times) < 40:  # decodes alone
        times.append(_step(engine, names))
    length = min(2000, engine.max_context - 100)
    long = engine.submit(_ids(draw, vocabulary, length), greedy(2))
    alone, during = statistics.median(times[-32:]), list[float]()
    while engine.is_running(long):
        during.append(_step(engine, names))
    for name in names:
        engine.abort(name)
    every = times[-32:] + during
    middle, late = statistics.median(every), float(np.percentile(every, 99))
    return [
        f"pace {pace or 0:g}: {length} tokens read in {sum(during):.2f} s and {len(during)} steps;"
        f" token to token {alone * 1e3:.1f} ms before, median {middle * 1e3:.1f} ms,"
        f" p99 {late * 1e3:.1f} ms ({late / middle:.2f} times)",
    ]


def _step(engine: Engine, names: set[str]) -> float:
    begun = time.perf_counter()
    while not any(delta.request_id in names for delta in engine.step()):
        pass
    return time.perf_counter() - begun


def prefix(artifact: Artifact, pace: float | None) -> list[str]:
    """The first token with and without a known prefix."""
    engine = artifact.new_engine(EngineOptions(pace=pace))
    draw, vocabulary = random.Random(3), engine.runner.vocabulary
    served(engine, [(_ids(draw, vocabulary, 300), 2)])
    cold, warm = list[float](), list[float]()
    for _ in range(3):
        shared = _ids(draw, vocabulary, 1000)
        for times in (cold, warm):
            seconds, _ = served(engine, [(shared + _ids(draw, vocabulary, 16), 1)])
            times.append(seconds)
    first, again = statistics.median(cold), statistics.median(warm)
    return [
        f"first token after {first * 1e3:.1f} ms, with a known prefix {again * 1e3:.1f} ms"
        f" ({first / again:.1f} times sooner)"
    ]


def pool(artifact: Artifact, pace: float | None) -> list[str]:
    """Blocks that sequences hold while others wait, in pools for some 20 and some 160 of them."""
    block = artifact.plan.block
    return [_filled(many * -(-256 // block), block) for many in (16, 128)]


def _filled(blocks: int, block: int) -> str:
    scheduler = Scheduler(BlockPool(blocks), block=block, max_batch=512, chunk=8192)
    count = 3 * blocks
    lengths: dict[str, int] = {}
    for number, (prompt, output) in enumerate(trace(4, count)):
        lengths[str(number)] = prompt + output
        scheduler.admit(Scheduled(str(number), [1] * prompt, prompt, limit=output))
    shares: list[float] = []
    while step := scheduler.next_step():
        if len(scheduler.waiting):
            shares.append(scheduler.pool.used / blocks)
        scheduler.commit(step)
        for sequence in [part.sequence for part in step.parts if not part.sequence.pending]:
            sequence.tokens.append(1)
            if len(sequence.tokens) == lengths[sequence.id]:
                scheduler.remove(sequence)
    return (
        f"{blocks} blocks: {statistics.mean(shares):.1%} held on average over {len(shares)} steps,"
        f" {scheduler.preemptions} preemptions of {count} requests"
    )


def schedule(artifact: Artifact, pace: float | None) -> list[str]:
    """Planning and committing alone."""
    count, block = 256, artifact.plan.block
    scheduler = Scheduler(BlockPool(count * 40), block=block, max_batch=count, chunk=8192)
    for number in range(count):
        scheduler.admit(Scheduled(str(number), [1] * 200, 200, limit=400))
    times: list[float] = []
    for _ in range(200):
        begun = time.perf_counter()
        step = scheduler.next_step()
        assert step is not None
        scheduler.commit(step)
        times.append(time.perf_counter() - begun)
        for part in step.parts:
            if not part.sequence.pending:
                part.sequence.tokens.append(1)
    decodes = [t * 1e3 for t in times[20:]]
    middle, late = np.percentile(decodes, (50, 99))
    return [f"{count} sequences: {middle:.2f} ms a step, 99 percent within {late:.2f} ms"]


MEASURES: dict[str, Callable[[Artifact, float | None], list[str]]] = {
    "pace": pace_of,
    "prefix": prefix,
    "pool": pool,
    "schedule": schedule,
}


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path, metavar="DIR")
    parser.add_argument("measures", nargs="*", default=list(MEASURES), metavar="MEASURE")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--pace", type=float, default=2.0, help="as that of ferrule serve")
    options = parser.parse_args()
    if unknown := [name for name in options.measures if name not in MEASURES]:
        parser.error(f"no measure {unknown[0]!r}; there are {', '.join(MEASURES)}")
    artifact = load(options.artifact, threads=options.threads, verify=False)
    for name in options.measures:
        for line in MEASURES[name](artifact, options.pace or None):
            print(f"{name:<10}{line}", flush=True)


if __name__ == "__main__":
    main()
