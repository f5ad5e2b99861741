"""Hugging Face transformers on PyTorch, eager or with its decode step compiled by torch.compile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .protocol import Asks, Given, Prompts, run


class HuggingFace:
    """A checkpoint in its own dtype. Mode "compile" keeps a static cache of the case's length and
    compiles the step of one token, as its documentation advises; prompts are read eagerly.
    """

    def __init__(self, given: Given) -> None:
        import torch
        import transformers

        torch.set_num_threads(given.threads)
        self.torch: Any = torch
        self.cache_type = transformers.StaticCache if given.mode == "compile" else None
        loaded = transformers.AutoModelForCausalLM.from_pretrained(given.path, dtype="auto")
        self.model: Any = loaded.eval()
        self.step: Any = self.model
        if self.cache_type:
            self.step = torch.compile(self.model, dynamic=False)
        self.cache: Any = None
        self.tokens: Any = None
        self.details: Mapping[str, str] = {
            "version": f"transformers {transformers.__version__}, torch {torch.__version__}"
        }

    def prefill(self, prompts: Prompts, room: int) -> None:
        """Prompts of one length in a batch."""
        with self.torch.inference_mode():
            self.cache = self._static(room)
            ids = self.torch.tensor(prompts)
            out = self.model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
            self.cache = out.past_key_values
            self.tokens = out.logits[:, -1].argmax(-1, keepdim=True)

    def decode(self, steps: int) -> None:
        """One token of every sequence a call."""
        with self.torch.inference_mode():
            for _ in range(steps):
                out = self.step(self.tokens, past_key_values=self.cache, use_cache=True)
                self.tokens = out.logits[:, -1].argmax(-1, keepdim=True)

    def release(self) -> None:
        """Drop the cache."""
        self.cache = self.tokens = None

    def serve(self, asks: Asks) -> None:
        """One after another: it has no batch that requests join and leave."""
        for prompt, count in asks:
            self.prefill([prompt], len(prompt) + count)
            self.decode(count - 1)
            self.release()

    def _static(self, room: int) -> Any:
        if self.cache_type is None:
            return None
        return self.cache_type(config=self.model.config, max_cache_len=room)


if __name__ == "__main__":
    run(HuggingFace)
