"""Tiny language models with random weights: the Hugging Face types that tests answer for one by
one, and three from scratch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from ferrule.compiler.zoo_configs import tiny_config as config
from ferrule.compiler.zoo_models import eager_greedy, logits_of, randomize, tiny_model
from ferrule.compiler.zoo_models import zoo_prompts as prompts
from torch import nn

from .scratch import InterleavedLM, PlainLM, RecurrentLM

__all__ = [
    "NAMES", "SCRATCH", "build", "config", "eager_greedy", "logits_of", "prompts", "randomize",
]  # fmt: skip

TYPES = (
    "llama",
    "mistral",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "gpt_oss",
    "opt",
    "bloom",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "mixtral",
    "olmo2",
    "olmoe",
    "stablelm",
    "starcoder2",
    "cohere2",
    "internlm3",
    "llama4_text",
    "deepseek_v2",
    "deepseek_v3",
    "afmoe",
    "dots1",
    "granite_swa",
    "lfm2",
)
SCRATCH: Mapping[str, Callable[[], nn.Module]] = {
    "scratch_plain": PlainLM,
    "scratch_interleaved": InterleavedLM,
    "scratch_recurrent": RecurrentLM,
}
NAMES = (*TYPES, *SCRATCH)


def build(name: str, seed: int = 0) -> nn.Module:
    """The tiny model of a type, float32, in evaluation mode, the same for the same seed."""
    if name not in SCRATCH:
        return tiny_model(name, seed)
    torch.manual_seed(seed)
    return randomize(SCRATCH[name]().eval(), seed)
