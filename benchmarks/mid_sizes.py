"""Configurations of mid-sized models: few layers of the real ones' kinds, heads and states as
large as theirs, so that a kernel does what it does in the real model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WIDTH, HEAD = 1024, 64
HEADS = WIDTH // HEAD
_FULL, _SLIDING, _LINEAR = "full_attention", "sliding_attention", "linear_attention"
_EVERY = {
    "vocab_size": 32000,
    "hidden_size": WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
_DENSE = {**_EVERY, "num_key_value_heads": 4, "intermediate_size": 3072}
_MANY_HEADS = {**_EVERY, "num_key_value_heads": HEADS, "intermediate_size": 4096}
_EXPERTS = {"num_experts_per_tok": 4, "moe_intermediate_size": 512}
_MAMBA = {"mamba_n_heads": 32, "mamba_d_head": 64, "mamba_n_groups": 1, "mamba_d_state": 128}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 150000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 4096,
}

SIZES: Mapping[str, Mapping[str, Any]] = {
    "llama": _DENSE,
    "qwen3": {**_DENSE, "head_dim": 128, "num_attention_heads": 8, "num_key_value_heads": 4},
    "gemma3_text": {
        **_DENSE,
        "head_dim": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "sliding_window": 512,
        "layer_types": [_SLIDING, _SLIDING, _SLIDING, _FULL],
    },
    "gpt2": {"vocab_size": 32000, "n_embd": WIDTH, "n_layer": 4, "n_head": HEADS},
    "gpt_neox": {**_EVERY, "intermediate_size": 4096},
    "phi3": {**_MANY_HEADS, "head_dim": HEAD, "pad_token_id": 0},
    "olmo2": _DENSE,
    "qwen3_moe": {**_DENSE, **_EXPERTS, "head_dim": 128, "num_experts": 32},
    "mixtral": {**_DENSE, "num_local_experts": 8, "num_experts_per_tok": 2},
    "deepseek_v3": {
        **_MANY_HEADS,
        **_EXPERTS,
        "n_routed_experts": 32,
        "n_group": 4,
        "topk_group": 2,
        "first_k_dense_replace": 1,
        "q_lora_rank": 512,
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
    },
    "gpt_oss": {
        **_DENSE,
        "head_dim": HEAD,
        "intermediate_size": 1024,
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
        "sliding_window": 128,
        "layer_types": [_SLIDING, _FULL] * 2,
        "rope_parameters": _YARN,
    },
    "mamba2": {
        "vocab_size": 32000,
        "hidden_size": WIDTH,
        "num_hidden_layers": 4,
        "num_heads": 32,
        "head_dim": 64,
        "n_groups": 1,
        "state_size": 128,
    },
    "falcon_mamba": {
        "vocab_size": 32000,
        "hidden_size": WIDTH,
        "num_hidden_layers": 4,
        "intermediate_size": 2 * WIDTH,
        "time_step_rank": 64,
        "state_size": 16,
    },
    "qwen3_next": {
        **_DENSE,
        **_EXPERTS,
        "head_dim": 256,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "num_experts": 32,
        "shared_expert_intermediate_size": 512,
        "linear_num_key_heads": 8,
        "linear_num_value_heads": 16,
        "layer_types": [_LINEAR, _LINEAR, _LINEAR, _FULL],
    },
    "lfm2": {
        **_DENSE,
        "block_auto_adjust_ff_dim": False,
        "layer_types": ["conv", "conv", _FULL, "conv"],
    },
    "bamba": {**_DENSE, **_MAMBA, "attn_layer_indices": [2]},
    "nemotron_h": {
        **_DENSE,
        **_EXPERTS,
        "head_dim": 128,
        "num_attention_heads": 8,
        "layers_block_type": [_LINEAR, "mlp", _LINEAR, "moe", _FULL, "mlp"],
        "num_hidden_layers": 6,
        "mamba_num_heads": 32,
        "mamba_head_dim": 64,
        "ssm_state_size": 128,
        "n_groups": 8,
        "n_routed_experts": 32,
        "moe_shared_expert_intermediate_size": 512,
    },
    "bloom": {"vocab_size": 32000, "hidden_size": WIDTH, "n_layer": 4, "n_head": HEADS},
    "mpt": {"vocab_size": 32000, "d_model": WIDTH, "n_layers": 4, "n_heads": HEADS},
}
"""By the type of Hugging Face's configuration."""
