"""A stack that sleeps: a worker's process with nothing to install."""

import sys
from pathlib import Path

import pytest

from benchmarks.stacks import ROOT, STACKS, Installed

# What stands for a peer's interpreter; it is started with -m MODULE and the worker's arguments.
SCRIPT = """#!{python}
import sys, time
sys.path.insert(0, {root!r})
sys.argv = [sys.argv[0], *sys.argv[3:]]
from benchmarks.workers.protocol import run

class Sleeper:
    def __init__(self, given):
        self.details = {{"threads": str(given.threads), "mode": given.mode}}
        print("a library says hello")
    def prefill(self, prompts, room):
        time.sleep({prefill})
        self.prompts = prompts
        if len(prompts) == {falls_over}:
            raise SystemExit("out of chairs")
    def decode(self, steps):
        time.sleep({step} * steps)
    def release(self):
        self.prompts = None
    def serve(self, asks):
        time.sleep(sum({prefill} + {step} * count for _, count in asks))

run(Sleeper)
"""


@pytest.fixture
def sleeper(tmp_path: Path):
    """Makes an installed stack whose prefill and steps take so many seconds."""

    def made(
        name: str, *, prefill: float = 0.0, step: float = 0.0, falls_over: int = 0
    ) -> Installed:
        path = tmp_path / f"python-{name}"
        path.write_text(
            SCRIPT.format(
                python=sys.executable,
                root=str(ROOT),
                prefill=prefill,
                step=step,
                falls_over=falls_over,
            )
        )
        path.chmod(0o755)
        return Installed(STACKS[name], str(path))

    return made
