"""One stack in a process of its own, asked for work over standard input and output.

    python -m benchmarks.workers ferrule ARTIFACT
    python -m benchmarks.workers hf-eager CHECKPOINT

Each line in is a JSON request {"prompt": tokens, "new": tokens, "sequences": n}; each line out
gives the seconds of prefill and decode. Two measured stacks can so alternate, neither seeing the
other's threads: a worker that waits computes nothing.
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
from typing import Any, Protocol

THREADS = 2


@dataclass(frozen=True)
class Timing:
    """Seconds of one request's prefill (up to the first token) and of the tokens after it."""

    prefill: float
    decode: float


class Stack(Protocol):
    """Something that generates."""

    def generate(self, prompt: list[list[int]], new: int) -> Timing:
        """Generate `new` greedy tokens for each prompt and time it."""
        ...


class Ferrule:
    """An artifact through its engine."""

    def __init__(self, path: str) -> None:
        import ferrule

        self.artifact = ferrule.load(path, threads=THREADS)
        self.engine = self.artifact.new_engine()

    def generate(self, prompt: list[list[int]], new: int) -> Timing:
        """Step the engine until every request has its tokens."""
        import ferrule

        params = ferrule.SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True)
        begin = time.perf_counter()
        names = [self.engine.submit(p, params) for p in prompt]
        waiting = set(names)
        while waiting:
            waiting -= {d.request_id for d in self.engine.step() if d.token_ids}
        first = time.perf_counter()
        while self.engine.has_work:
            self.engine.step()
        return Timing(first - begin, time.perf_counter() - first)


class HuggingFaceEager:
    """The model in eager PyTorch with its own cache, in the dtype of its checkpoint."""

    def __init__(self, path: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(THREADS)
        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval()

    def generate(self, prompt: list[list[int]], new: int) -> Timing:
        """Prompts of one length in a batch, greedy tokens one step at a time."""
        torch = self.torch
        with torch.inference_mode():
            begin = time.perf_counter()
            out = self.model(torch.tensor(prompt), use_cache=True, logits_to_keep=1)
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            first = time.perf_counter()
            for _ in range(new - 1):
                out = self.model(token, past_key_values=out.past_key_values, use_cache=True)
                token = out.logits[:, -1].argmax(-1, keepdim=True)
            return Timing(first - begin, time.perf_counter() - first)


STACKS: Mapping[str, Callable[[str], Any]] = {"ferrule": Ferrule, "hf-eager": HuggingFaceEager}


def serve(stack: Stack, loaded: float) -> None:
    """Answer requests until the input ends."""
    _say({"loaded": loaded})
    chosen = random.Random(0)
    for line in sys.stdin:
        request = json.loads(line)
        # Fresh tokens for every sequence: a prefix cache would answer repeated ones from memory.
        prompt = [
            [chosen.randrange(3, 1000) for _ in range(request["prompt"])]
            for _ in range(request["sequences"])
        ]
        timing = stack.generate(prompt, request["new"])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        _say({"prefill": timing.prefill, "decode": timing.decode, "peak_bytes": peak})


def _say(answer: Mapping[str, float]) -> None:
    print(json.dumps(answer), flush=True)


def main() -> None:
    """Load one stack, say how long it took, and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stack", choices=list(STACKS))
    parser.add_argument("path")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))
    begin = time.perf_counter()
    stack = STACKS[args.stack](args.path)
    serve(stack, time.perf_counter() - begin)


if __name__ == "__main__":
    main()
