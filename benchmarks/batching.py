"""What continuous batching gives: one trace, served by each stack.

    python -m benchmarks.batching [--shape llama-1b] [--form int4] [--stacks NAME ...]
        [--peer NAME=PYTHON ...] [--work DIR] [--rounds 3] [--threads 2]

The trace is 32 requests that are all there at once, prompts of 64 to 256 random tokens, outputs of
32 to 128. Stacks run in processes of their own, in turn, after a warm-up each; every stack also
serves the first six requests one at a time. Prints medians of output tokens a second.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from . import report
from .cases import Room
from .checkpoints import SHAPES, checkpoint_of
from .models import model_of
from .processes import Worker
from .rounds import PAUSE
from .stacks import FORMATS, STACKS, Installed, find, interpreters

REQUESTS, ALONE = 32, 6
Sizes = list[tuple[int, int]]  # tokens of a prompt and of its output


def trace(seed: int = 1, count: int = REQUESTS) -> Sizes:
    """The sizes of the requests."""
    draw = random.Random(seed)
    return [(draw.randint(64, 256), draw.randint(32, 128)) for _ in range(count)]


def measure(installed: Sequence[Installed], options: argparse.Namespace) -> dict[str, list[float]]:
    """Output tokens a second by stack and way, of each round."""
    work: Path = options.work
    checkpoint = checkpoint_of(work / options.shape, SHAPES[options.shape])
    sizes = trace()
    room = Room(-(-max(map(sum, sizes)) // 512) * 512, REQUESTS, options.threads)
    logs = work / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    rates: dict[str, list[float]] = {}
    with ExitStack() as open_:
        workers = [
            open_.enter_context(
                closing(
                    Worker(
                        each,
                        model_of(each, options.form, checkpoint, room, work).path,
                        room,
                        logs / f"batching-{each.stack.name}.log",
                    )
                )
            )
            for each in installed
        ]
        for count in range(options.rounds + 1):  # the first one warms up
            for worker in workers:
                for way, groups in (("at once", [sizes]), ("alone", [[s] for s in sizes[:ALONE]])):
                    time.sleep(PAUSE)
                    seconds = sum(worker.serve(group) for group in groups)
                    tokens = sum(output for group in groups for _, output in group)
                    name = f"{worker.name}, {len(groups[0] if way == 'at once' else groups)} {way}"
                    print(f"{count}: {name}: {tokens / seconds:.1f} tokens/s", flush=True)
                    if count:
                        rates.setdefault(name, []).append(tokens / seconds)
    return rates


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = [name for name, stack in STACKS.items() if not stack.needs_asking]
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--shape", choices=list(SHAPES), default="llama-1b")
    parser.add_argument("--form", choices=FORMATS, default="int4")
    parser.add_argument("--stacks", nargs="+", choices=list(STACKS), default=usual)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    options = parser.parse_args()
    installed, skipped = find(options.stacks, interpreters(options.peer))
    print(report.heading(options.threads, options.rounds))
    print("\n".join(skipped), flush=True)
    rates = measure([i for i in installed if options.form in i.stack.layouts], options)
    print(f"\n{options.shape} {options.form}, output tokens a second:\n")
    for name, found in rates.items():
        print(f"{name:<28}{statistics.median(found):8.1f}")
    results = options.work / f"batching-{time.strftime('%Y%m%d-%H%M%S')}.json"
    results.write_text(json.dumps(rates, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
