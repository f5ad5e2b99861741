"""Tiny models with random weights, and what eager PyTorch makes of them: the whole sequence
computed again for every token, without a cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from .models import language_model
from .zoo_configs import VOCABULARY, tiny_config

LENGTHS = (5, 13, 1, 22, 8, 17, 3, 30)


def tiny_model(kind: str, seed: int = 0) -> nn.Module:
    """The tiny model of a Hugging Face type, float32, in evaluation mode, the same for the same
    seed.
    """
    torch.manual_seed(seed)
    model = language_model(tiny_config(kind), torch.float32)
    return randomize(model.eval(), seed)


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every parameter, so that no bias is zero, no norm weight one, and logits spread by
    several units.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if weight.dim() >= 2:
            fan_in = weight[0].numel() if weight.dim() == 2 else weight.shape[-2:].numel() ** 0.5
            # Small embeddings: where they are the output matrix too, large ones would make every
            # token repeat itself.
            weight.copy_(noise * ((0.3 if id(weight) in tables else 1.3) / math.sqrt(fan_in)))
        elif "norm" in name or "ln_" in name:
            weight.copy_(weight + 0.2 * noise)
        else:
            weight.copy_(0.3 * noise)
    for name, buffer in model.named_buffers():
        if "correction" in name:  # the routing bias of deepseek_v3 and its relatives
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
    return model


def zoo_prompts(count: int = 4, seed: int = 0, vocabulary: int = VOCABULARY) -> list[list[int]]:
    """Prompts of different lengths, some longer than the tiny models' windows, without special
    tokens.
    """
    generator = torch.Generator().manual_seed(seed + 2)
    return [
        torch.randint(3, vocabulary, (n,), generator=generator).tolist() for n in LENGTHS[:count]
    ]


def logits_of(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Eager logits [B, S, V] of ids [B, S], without a cache."""
    if hasattr(model, "config"):
        result = model(ids, use_cache=False)
        return result[0] if isinstance(result, tuple) else result.logits
    return model(ids)


@torch.no_grad()
def eager_greedy(
    model: nn.Module, prompt: Sequence[int], count: int
) -> tuple[list[int], torch.Tensor]:
    """The greedy continuation and its logits [count, V], the whole sequence recomputed for every
    token.
    """
    ids, rows = list(prompt), []
    for _ in range(count):
        row = logits_of(model, torch.tensor([ids]))[0, -1]
        rows.append(row)
        ids.append(int(row.argmax()))
    return ids[len(prompt) :], torch.stack(rows)
