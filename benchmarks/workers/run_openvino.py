"""OpenVINO GenAI: its continuous batching pipeline, which its LLMPipeline runs on x86 as well.

Hints for latency, threads as given, prompts read whole as its LLMPipeline does. The precision of
matrix products and of the cache are its own defaults for the machine, which `details` quotes.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from .protocol import Asks, Given, Prompts, run

CACHE = 1  # GiB, as every stack that asks for a number gets


class OpenVino:
    """A folder with a model in OpenVINO's format; what it compiles is cached beside it."""

    def __init__(self, given: Given) -> None:
        import numpy

        openvino: Any = import_module("openvino")
        self.genai: Any = import_module("openvino_genai")
        self.tensor = lambda ids: openvino.Tensor(numpy.array([ids], dtype=numpy.int64))
        scheduling = self.genai.SchedulerConfig()
        scheduling.cache_size = CACHE
        scheduling.max_num_batched_tokens = given.room * given.sequences
        scheduling.max_num_seqs = given.sequences
        properties = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": given.threads,
            "CACHE_DIR": str(given.path / "compiled"),
        }
        self.pipeline = self.genai.ContinuousBatchingPipeline(
            str(given.path), scheduling, "CPU", properties
        )
        self.handles: list[Any] = []
        self.count = 0
        core = openvino.Core()
        known = {
            name: str(core.get_property("CPU", name))
            for name in ("INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION")
        }
        self.details: Mapping[str, str] = {"version": self.genai.__version__, **known}

    def prefill(self, prompts: Prompts, room: int) -> None:
        """Step until every sequence has its first token."""
        self.handles = [self._add(prompt, room - len(prompt)) for prompt in prompts]
        waiting = list(self.handles)
        while waiting:
            self.pipeline.step()
            waiting = [h for h in waiting if not _read(h)]

    def decode(self, steps: int) -> None:
        """Step until the sequences together have so many more tokens each."""
        made = 0
        while made < steps * len(self.handles):
            self.pipeline.step()
            made += sum(_read(h) for h in self.handles)

    def release(self) -> None:
        """Cancel the requests and let the pipeline drop them."""
        for handle in self.handles:
            handle.cancel()
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()

    def serve(self, asks: Asks) -> None:
        """Step until nothing is left."""
        handles = [self._add(prompt, count) for prompt, count in asks]
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
        made = sum(map(_read, handles))
        if made != sum(count for _, count in asks):
            raise SystemExit(f"OpenVINO generated {made} tokens of {sum(c for _, c in asks)}")

    def _add(self, prompt: list[int], count: int) -> Any:
        config = self.genai.GenerationConfig()
        config.max_new_tokens = count
        config.ignore_eos, config.do_sample = True, False
        self.count += 1
        return self.pipeline.add_request(self.count, self.tensor(prompt), config)


def _read(handle: Any) -> int:
    """How many tokens a request got since the last call."""
    made = 0
    while handle.can_read():
        made += sum(len(output.generated_ids) for output in handle.read().values())
    return made


if __name__ == "__main__":
    run(OpenVino)
