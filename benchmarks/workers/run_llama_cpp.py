"""llama.cpp through the C functions of llama-cpp-python, a GGUF file mapped as it does by itself.

Repacked weights, flash attention and a float16 cache are its own defaults.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from .protocol import Asks, Given, Prompts, run

BATCH = 2048  # tokens of a call, its default


class LlamaCpp:
    """A GGUF file; a context is made for the sequences of a case and kept while cases repeat."""

    def __init__(self, given: Given) -> None:
        import numpy

        self.api: Any = import_module("llama_cpp")
        self.array = numpy.ctypeslib.as_array
        self.threads, self.sequences = given.threads, given.sequences
        self.api.llama_backend_init()
        params = self.api.llama_model_default_params()
        self.model = self.api.llama_model_load_from_file(str(given.path).encode(), params)
        if not self.model:
            raise SystemExit(f"{given.path}: llama.cpp does not load it")
        self.width = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self.model))
        self.context: Any = None
        self.form = (0, 0)
        self.next: list[int] = []
        self.position = 0
        self.details: Mapping[str, str] = {
            "version": f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}",
            "system": self.api.llama_print_system_info().decode().strip(" |"),
        }

    def prefill(self, prompts: Prompts, room: int) -> None:
        """Read the prompts in calls of BATCH tokens."""
        self._open(len(prompts), room)
        last = len(prompts[0]) - 1
        tokens = [
            (token, position, sequence, position == last)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        self.next = []
        for begin in range(0, len(tokens), BATCH):
            self.next.extend(self._run(tokens[begin : begin + BATCH]))
        self.position = last + 1

    def decode(self, steps: int) -> None:
        """Call it with one token of every sequence, so many times."""
        for _ in range(steps):
            tokens = [(t, self.position, s, True) for s, t in enumerate(self.next)]
            self.next = list(self._run(tokens))
            self.position += 1

    def release(self) -> None:
        """Forget the sequences; their context stays."""
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), False)

    def serve(self, asks: Asks) -> None:
        """Each call decodes every running sequence and reads prompts in the rest of the batch, as
        llama-server does; a sequence that ends gives its place to the next.
        """
        self._open(self.sequences, max(len(prompt) + count for prompt, count in asks))
        memory = self.api.llama_get_memory(self.context)
        waiting, free = list(reversed(asks)), list(range(self.sequences))
        reading: dict[int, list[int]] = {}  # by place, tokens of the prompt that are left
        left, ends, last = dict[int, int](), dict[int, int](), dict[int, int]()
        while waiting or reading or left:
            while waiting and free:
                place = free.pop()
                reading[place], left[place] = waiting.pop()
                ends[place] = 0
            tokens = [(last[p], ends[p], p, True) for p in left if p not in reading]
            for place, prompt in list(reading.items()):
                now = prompt[: BATCH - len(tokens)]
                whole = len(now) == len(prompt)
                tokens += [
                    (token, ends[place] + i, place, whole and i + 1 == len(now))
                    for i, token in enumerate(now)
                ]
                reading[place] = prompt[len(now) :]
                if whole:
                    del reading[place]
            for _, _, place, _ in tokens:
                ends[place] += 1
            wanted = [place for *_, place, row in tokens if row]
            for place, token in zip(wanted, self._run(tokens), strict=True):
                last[place] = token
                left[place] -= 1
                if not left[place]:
                    self.api.llama_memory_seq_rm(memory, place, -1, -1)
                    del left[place]
                    free.append(place)

    def _open(self, sequences: int, room: int) -> None:
        if self.form == (sequences, room):
            return
        if self.context:
            self.api.llama_free(self.context)
            self.api.llama_batch_free(self.batch)
        params = self.api.llama_context_default_params()
        params.n_ctx = sequences * (-(-room // 256) * 256)
        params.n_seq_max = sequences
        params.n_batch = BATCH
        params.n_threads = params.n_threads_batch = self.threads
        params.no_perf = True
        self.context = self.api.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit(f"llama.cpp makes no context of {params.n_ctx} tokens")
        self.batch = self.api.llama_batch_init(BATCH, 0, 1)
        self.form = (sequences, room)

    def _run(self, tokens: list[tuple[int, int, int, bool]]) -> Iterator[int]:
        """The likeliest next tokens of the rows that ask for logits."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
        status = self.api.llama_decode(self.context, batch)
        if status:
            raise SystemExit(f"llama_decode of {len(tokens)} tokens gave {status}")
        for i, (*_, wanted) in enumerate(tokens):
            if wanted:
                logits = self.api.llama_get_logits_ith(self.context, i)
                yield int(self.array(logits, (self.width,)).argmax())


if __name__ == "__main__":
    run(LlamaCpp)
