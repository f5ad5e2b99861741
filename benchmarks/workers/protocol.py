"""What a worker is told and what it answers: a JSON object a line, over standard input and output.

    python -m benchmarks.workers.run_ferrule MODEL --threads 2 --room 4224 --sequences 8

The first line out says how long loading took and what the stack says of itself. Each line in is a
request {"prompt": tokens, "sequences": n, "steps": tokens, "room": tokens, "keep": bool}; each line
out gives the seconds of the prefill (up to the first token of every sequence) and of the steps
after it. A request that keeps its sequences lets the next like it go on where it ended, which is
then without a prefill. A request {"asks": [[prompt tokens, output tokens], ...]} is a trace whose
requests are all there at once, answered by its seconds. A worker that waits computes nothing, so
that measured stacks can alternate.

This file needs the standard library alone: it runs in the environments of all peers.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

Prompts = list[list[int]]
Asks = list[tuple[list[int], int]]  # a prompt, and how many tokens follow it


@dataclass(frozen=True)
class Given:
    """What a stack is loaded with: the model's files, threads, the longest sequence in tokens, the
    most sequences at once, and a mode where the stack has several.
    """

    path: Path
    threads: int
    room: int
    sequences: int
    mode: str


class Stack(Protocol):
    """Something that generates greedily."""

    details: Mapping[str, str]

    def prefill(self, prompts: Prompts, room: int) -> None:
        """Read prompts of one length and choose the first token of each; sequences will have at
        most `room` tokens.
        """
        ...

    def decode(self, steps: int) -> None:
        """Generate so many more tokens for every sequence."""
        ...

    def release(self) -> None:
        """End the sequences."""
        ...

    def serve(self, asks: Asks) -> None:
        """Generate for requests that are all there at once, as many of them at a time as it can."""
        ...


class Session:
    """Answers the requests of one worker."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.kept: tuple[int, int, int] | None = None
        self._chosen = random.Random(0)

    def answer(self, request: Mapping[str, Any]) -> dict[str, float | None]:
        """Do one request; `prefill` is None where kept sequences went on."""
        if "asks" in request:
            return self._served(request["asks"])
        form = (request["prompt"], request["sequences"], request["room"])
        begin = time.perf_counter()
        if self.kept != form:
            if self.kept:
                self.stack.release()
            prompts = self._prompts(request["prompt"], request["sequences"])
            begin = time.perf_counter()
            self.stack.prefill(prompts, request["room"])
        first = time.perf_counter()
        prefill = None if self.kept == form else first - begin
        if request["steps"]:
            self.stack.decode(request["steps"])
        decode = time.perf_counter() - first
        self.kept = form if request["keep"] else None
        if not request["keep"]:
            self.stack.release()
        return {"prefill": prefill, "decode": decode, "peak_bytes": peak_bytes()}

    def _served(self, sizes: list[tuple[int, int]]) -> dict[str, float | None]:
        asks = [(self._prompts(length, 1)[0], count) for length, count in sizes]
        begin = time.perf_counter()
        self.stack.serve(asks)
        return {"seconds": time.perf_counter() - begin, "peak_bytes": peak_bytes()}

    def _prompts(self, length: int, sequences: int) -> Prompts:
        # Fresh tokens for every sequence: a prefix cache would answer repeated ones from memory.
        return [[self._chosen.randrange(3, 30000) for _ in range(length)] for _ in range(sequences)]


def peak_bytes() -> int:
    """The most memory that this process has had resident, mapped files counted."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def run(load: Callable[[Given], Stack]) -> None:
    """Load a stack as the command line says, say how long it took, and serve until the input
    ends.
    """
    answers = _own_output()
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    for name in ("threads", "room", "sequences"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--mode", default="")
    given = Given(**vars(parser.parse_args()))
    begin = time.perf_counter()
    stack = load(given)
    _say(answers, {"loaded": time.perf_counter() - begin, "details": dict(stack.details)})
    session = Session(stack)
    for line in sys.stdin:
        _say(answers, session.answer(json.loads(line)))


def _own_output() -> TextIO:
    """Standard output for answers alone: what libraries print goes where errors go."""
    kept = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(kept, "w", encoding="utf-8")


def _say(answers: TextIO, answer: Mapping[str, object]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()
