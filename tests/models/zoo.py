"""Tiny language models with random weights: every Hugging Face type that Ferrule answers for, and
two from scratch.

Each has all the kinds of layers of its type (sliding and full attention, dense and expert layers),
grouped heads where
the type has them, and odd sizes. Weights are scaled so that logits differ by far more than
rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .scratch import InterleavedLM, PlainLM

_COMMON: dict[str, Any] = {
    "vocab_size": 211,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SLIDING = {"num_hidden_layers": 3, "sliding_window": 7}
_LAYERS = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
_LATENT = {
    "num_key_value_heads": 6,
    "kv_lora_rank": 20,
    "q_lora_rank": 28,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 10,
    "v_head_dim": 12,
    "moe_intermediate_size": 40,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "num_hidden_layers": 3,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.1 * i for i in range(4)],
    "long_factor": [1.5 + 0.7 * i for i in range(4)],
    "original_max_position_embeddings": 96,
}

# What each type's config takes beside _COMMON; None drops a common field that the type spells
# otherwise.
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "mistral": {**_SLIDING},
    "gemma": {"head_dim": 14},
    "gemma2": {"head_dim": 14, "query_pre_attn_scalar": 11, **_SLIDING, **_LAYERS},
    "gemma3_text": {"head_dim": 14, "query_pre_attn_scalar": 11, **_SLIDING, **_LAYERS},
    "gpt2": {
        "n_embd": 48,
        "n_layer": 2,
        "n_head": 6,
        "n_inner": 72,
        "n_positions": 96,
        "scale_attn_by_inverse_layer_idx": True,
    },
    "gpt_neox": {
        "num_key_value_heads": None,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
        },
    },
    "gpt_oss": {
        **_SLIDING,
        **_LAYERS,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "head_dim": 14,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": 4.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 24,
        },
    },
    "opt": {
        "ffn_dim": 72,
        "word_embed_proj_dim": 36,
        "num_key_value_heads": None,
        "intermediate_size": None,
    },
    "bloom": {
        "hidden_size": 48,
        "n_layer": 2,
        "n_head": 6,
        "num_key_value_heads": None,
        "intermediate_size": None,
    },
    "phi": {"qk_layernorm": True},
    "phi3": {
        "original_max_position_embeddings": 96,
        "sliding_window": 9,
        "rope_parameters": _LONGROPE,
    },
    "qwen2": {**_SLIDING, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {**_SLIDING, "head_dim": 14, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3_moe": {
        **_EXPERTS,
        "head_dim": 14,
        "num_hidden_layers": 3,
        "mlp_only_layers": [1],
        "norm_topk_prob": True,
    },
    "mixtral": {**_SLIDING, "num_local_experts": 5, "num_experts_per_tok": 2},
    "olmo2": {},
    "olmoe": {"num_experts": 5, "num_experts_per_tok": 2, "clip_qkv": 1.5},
    "stablelm": {"use_qkv_bias": True, "qk_layernorm": True, "partial_rotary_factor": 0.5},
    "starcoder2": {**_SLIDING},
    "cohere2": {**_SLIDING, **_LAYERS, "num_key_value_heads": 3, "logit_scale": 0.9},
    "internlm3": {
        "head_dim": 14,
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 6.0},
    },
    "llama4_text": {
        "num_hidden_layers": 4,
        "head_dim": 14,
        "intermediate_size_mlp": 56,
        "num_local_experts": 3,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 2,
        "no_rope_layers": [1, 1, 0, 1],
        "attention_chunk_size": 8,
        "floor_scale": 4,
        "layer_types": [
            "chunked_attention",
            "chunked_attention",
            "full_attention",
            "chunked_attention",
        ],
    },
    "deepseek_v2": {**_LATENT, "n_shared_experts": 2, "topk_method": "group_limited_greedy"},
    "deepseek_v3": {**_LATENT, "n_shared_experts": 1},
    "afmoe": {
        **_SLIDING,
        **_LAYERS,
        **_EXPERTS,
        "head_dim": 14,
        "num_dense_layers": 1,
        "num_shared_experts": 1,
        "mup_enabled": True,
    },
    "dots1": {
        "num_hidden_layers": 3,
        "sliding_window": 7,
        "max_window_layers": 2,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 40,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.5,
    },
    "granite_swa": {
        **_SLIDING,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "layer_rope_theta": [0, 10000.0, 500.0],
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.7,
        "logits_scaling": 1.3,
        "attention_multiplier": 0.3,
    },
}
SCRATCH: Mapping[str, Callable[[], nn.Module]] = {
    "scratch_plain": PlainLM,
    "scratch_interleaved": InterleavedLM,
}
NAMES = (*CONFIGS, *SCRATCH)


def build(name: str, seed: int = 0) -> nn.Module:
    """The tiny model of a type, float32, in evaluation mode, the same for the same seed."""
    torch.manual_seed(seed)
    model = SCRATCH[name]() if name in SCRATCH else _hugging_face(name)
    return randomize(model.eval(), seed)


def config(name: str) -> Any:
    """The tiny config of a Hugging Face type."""
    from transformers import AutoConfig

    fields = {k: v for k, v in {**_COMMON, **CONFIGS[name]}.items() if v is not None}
    return AutoConfig.for_model(name, **fields)


def _hugging_face(name: str) -> nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config(name), dtype=torch.float32)


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every parameter, so that no bias is zero, no norm weight one, and logits spread by
    several units.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        fan_in = weight[0].numel() if weight.dim() == 2 else weight.shape[-2:].numel() ** 0.5
        if weight.dim() >= 2:
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


def prompts(count: int = 4, seed: int = 0, vocabulary: int = 211) -> list[list[int]]:
    """Prompts of different lengths, some longer than the tiny models' windows, without special
    tokens.
    """
    generator = torch.Generator().manual_seed(seed + 2)
    lengths = [5, 13, 1, 22, 8, 17, 3, 30][:count]
    return [torch.randint(3, vocabulary, (n,), generator=generator).tolist() for n in lengths]


def logits_of(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Eager logits [B, S, V] of ids [B, S], without a cache."""
    if hasattr(model, "config"):
        return model(ids, use_cache=False).logits
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
