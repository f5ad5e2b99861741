"""vLLM built for CPUs, its engine stepped in this process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from .protocol import Asks, Given, Prompts, run

CACHE = 1  # GiB, as every stack that asks for a number gets


class Vllm:
    """A checkpoint; no prefix cache is kept, tokens stay ids."""

    def __init__(self, given: Given) -> None:
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(CACHE)
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{given.threads - 1}"

        self.vllm: Any = import_module("vllm")
        self.deltas = import_module("vllm.sampling_params").RequestOutputKind.DELTA
        self.engine: Any = self.vllm.LLM(
            str(given.path),
            dtype="bfloat16",
            max_model_len=given.room,
            max_num_seqs=given.sequences,
            max_num_batched_tokens=max(2048, given.room),
            enable_prefix_caching=False,
            skip_tokenizer_init=True,
        ).llm_engine
        self.names: list[str] = []
        self.count = 0
        self.details: Mapping[str, str] = {"version": self.vllm.__version__}

    def prefill(self, prompts: Prompts, room: int) -> None:
        """Step until every sequence has its first token."""
        self.names = [self._add(prompt, room - len(prompt)) for prompt in prompts]
        waiting = set(self.names)
        while waiting:
            waiting -= {out.request_id for out in self.engine.step() if _made(out)}

    def decode(self, steps: int) -> None:
        """Step until the sequences together have so many more tokens each."""
        made = 0
        while made < steps * len(self.names):
            made += sum(map(_made, self.engine.step()))

    def release(self) -> None:
        """Abort the requests."""
        self.engine.abort_request(self.names)
        while self.engine.has_unfinished_requests():
            self.engine.step()

    def serve(self, asks: Asks) -> None:
        """Step until nothing is left."""
        for prompt, count in asks:
            self._add(prompt, count)
        while self.engine.has_unfinished_requests():
            self.engine.step()

    def _add(self, prompt: list[int], count: int) -> str:
        params = self.vllm.SamplingParams(
            temperature=0.0,
            max_tokens=count,
            ignore_eos=True,
            detokenize=False,
            output_kind=self.deltas,
        )
        self.count += 1
        self.engine.add_request(f"{self.count}", {"prompt_token_ids": prompt}, params)
        return f"{self.count}"


def _made(output: Any) -> int:
    return sum(len(o.token_ids) for o in output.outputs)


if __name__ == "__main__":
    run(Vllm)
