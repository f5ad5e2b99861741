"""A server under mixed traffic for minutes: every answer right, nothing lost, memory that stays.

    python -m benchmarks.load [--minutes 10] [--clients 64] [--artifact DIR] [--json FILE]

Starts `ferrule serve` on the loopback with the embedded model (compiled for it, deterministic, so
that a seed must give the same text whatever else runs), lets clients ask one request after another
(traffic.py tells what), and ends with status 1 where an answer was not what was deserved, the
engine cannot account for a block, or the resident memory moved by more than 5 percent between
minute 2 (a fifth of a shorter run) and the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ferrule.runtime.bench.http import Target

from .stacks import ROOT
from .traffic import Outcome, ask_of, outcome_of

if TYPE_CHECKING:
    from collections.abc import Iterator

MODEL = ROOT / "examples/models/tiny-llama"
WARM, DRIFT = 120.0, 0.05  # seconds after which memory must stay, and the share that it may move


@dataclass
class Found:
    """What a run found."""

    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter[str])
    tokens: int = 0
    faults: list[str] = field(default_factory=list[str])
    memory: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])
    stats: dict[str, Any] = field(default_factory=dict[str, Any])
    _texts: dict[str, str] = field(default_factory=dict[str, str])

    def take(self, outcome: Outcome) -> None:
        """Count a request; one with a seed must say what it said before."""
        kind = outcome.kind.split()[0]
        self.counts[kind] += 1
        self.tokens += outcome.tokens
        if outcome.fault:
            self.faults.append(f"{outcome.kind}: {outcome.fault}")
        elif kind == "seeded" and outcome.text is not None:
            before = self._texts.setdefault(outcome.kind, outcome.text)
            if before != outcome.text:
                self.faults.append(f"{outcome.kind}: {outcome.text!r}, before {before!r}")

    def drift(self) -> tuple[int, int, float]:
        """Bytes of memory once warm and at the end, and the share between them: each the mean of
        a twentieth of the run.
        """
        warm, span = min(WARM, self.seconds / 5), self.seconds / 20
        first = [size for at, size in self.memory if warm <= at <= warm + span]
        last = [size for at, size in self.memory if at >= self.seconds - span]
        begin, end = (int(sum(sizes) / max(1, len(sizes))) for sizes in (first, last))
        return begin, end, end / max(1, begin) - 1


def compiled(folder: Path) -> Path:
    """The embedded model, deterministic, compiled where it is not there yet."""
    if not (folder / "manifest.json").is_file():
        import ferrule

        ferrule.compile(
            str(MODEL), max_context=2048, max_batch=32, chunk=256, deterministic=True, parity=False
        ).save(folder)
    return folder


@contextmanager
def served(artifact: Path, log: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server's process and its URL, once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "ferrule", "serve", str(artifact), "--port", str(port), *flags]
    with log.open("wb") as errors:
        process = subprocess.Popen(command, stderr=errors, cwd=ROOT)
    try:
        asyncio.run(_ready(process, f"http://127.0.0.1:{port}", log))
        yield process, f"http://127.0.0.1:{port}"
        process.terminate()
        process.wait(60)
    finally:
        process.kill()


async def _ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            await Target(url, {}).get("/version")
        except OSError:
            await asyncio.sleep(0.1)
        else:
            return
    raise SystemExit(f"the server does not start: {log.read_text()[-500:]}")


def resident(pid: int) -> int:
    """Bytes of a process in memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) << 10


async def drive(url: str, pid: int, clients: int, seconds: float, seed: int) -> Found:
    """Let clients ask for so many seconds, and wait for their last answers."""
    target, found, begun = Target(url, {}), Found(), time.monotonic()

    async def client(number: int) -> None:
        draw = random.Random(seed * 100_003 + number)
        while time.monotonic() < begun + seconds:
            found.take(await outcome_of(target, ask_of(draw)))

    async def watch() -> None:
        while True:
            found.memory.append((time.monotonic() - begun, resident(pid)))
            await asyncio.sleep(1.0)

    watching = asyncio.create_task(watch())
    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(client(number))
    watching.cancel()
    found.seconds = time.monotonic() - begun
    await _settle(target, found)
    return found


async def _settle(target: Target, found: Found) -> None:
    """Wait until the engines have nothing to do, and let them account for what they hold."""
    for _ in range(300):
        (found.stats,) = (await target.get("/stats"))["models"].values()
        if not (found.stats["running"] or found.stats["waiting"]):
            break
        await asyncio.sleep(0.1)
    for name in ("running", "waiting", "kv_blocks_used"):
        if found.stats[name]:
            found.faults.append(f"{name} is {found.stats[name]} when all is over")
    try:
        await target.get("/check")
    except Exception as error:
        found.faults.append(f"/check: {error}")


def report(found: Found) -> list[str]:
    """Lines of what a run found."""
    begin, end, share = found.drift()
    total, stats = sum(found.counts.values()), found.stats
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(found.counts.items()))
    return [
        f"{total} requests in {found.seconds:.0f} s: {kinds}",
        f"{found.tokens / found.seconds:.1f} output tokens/s of requests that were read to the end",
        f"{stats['steps']} steps, {stats['preemptions']} preemptions, {stats['swaps']} by swap,"
        f" {stats['prefix_cache_hits'] / max(1, stats['prefix_cache_queries']):.0%} of prompt"
        " tokens found in the prefix cache",
        f"memory {begin / 2**20:.1f} MiB, at the end {end / 2**20:.1f} MiB ({share:+.1%})",
        f"{len(found.faults)} faults" + "".join(f"\n  {f[:300]}" for f in found.faults[:20]),
    ]


def main(given: Sequence[str] | None = None) -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--artifact", type=Path, help="in place of the embedded model")
    parser.add_argument("--kv-memory", default="6M", help="small, so that sequences must give way")
    parser.add_argument("--work", type=Path, default=Path("build/load"))
    parser.add_argument("--json", type=Path, help="write everything here")
    options = parser.parse_args(given)
    options.work.mkdir(parents=True, exist_ok=True)
    artifact = options.artifact or compiled(options.work / "tiny")
    flags = ("--kv-memory", options.kv_memory)
    with served(artifact.absolute(), options.work / "server.log", *flags) as (process, url):
        seconds = options.minutes * 60
        found = asyncio.run(drive(url, process.pid, options.clients, seconds, options.seed))
    if process.returncode:
        found.faults.append(f"the server ended with {process.returncode}")
    begin, end, share = found.drift()
    if abs(share) > DRIFT:
        found.faults.append(f"memory moved from {begin} to {end} bytes")
    print("\n".join(report(found)))
    if options.json:
        fields = {"seconds": found.seconds, "counts": found.counts, "tokens": found.tokens}
        fields |= {"faults": found.faults, "memory": found.memory, "stats": found.stats}
        options.json.write_text(json.dumps(fields), encoding="utf-8")
    raise SystemExit(1 if found.faults else 0)


if __name__ == "__main__":
    main()
