"""What a tiny config of a type takes beside what the rules derive: data, where no rule can know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
_GEMMA3N = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
    "intermediate_size": 72,
    "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
}
_GEMMA4 = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
    "global_head_dim": 32,
}
_ASSISTANT = {
    "num_hidden_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"],
    "num_kv_shared_layers": 2,
    "global_head_dim": 32,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 0,
}
_INDEXED = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
}
_BY_KIND = {
    "swa_num_attention_heads": 6,
    "swa_num_key_value_heads": 6,
    "swa_q_lora_rank": 28,
    "swa_kv_lora_rank": 20,
    "swa_head_dim": 16,
    "swa_qk_nope_head_dim": 10,
    "swa_v_head_dim": 12,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.1 * i for i in range(4)],
    "long_factor": [1.5 + 0.7 * i for i in range(4)],
    "original_max_position_embeddings": 96,
}

# None leaves a field at its default.
OVERRIDES: Mapping[str, Mapping[str, Any]] = {
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
    "bamba": {
        "num_hidden_layers": 3,
        "attn_layer_indices": [1],
        "mamba_n_heads": 6,
        "mamba_d_head": 16,
    },
    "granitemoehybrid": {"mamba_n_heads": 6, "mamba_d_head": 16},
    "mamba2": {"num_heads": 6, "head_dim": 16, "n_groups": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "cohere_compass_text": {
        "layer_types": ["full_attention", "sliding_attention"],
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0}
            for kind in ("full_attention", "sliding_attention")
        },
    },
    "lfm2_moe": {
        "num_hidden_layers": 3,
        "layer_types": ["conv", "full_attention", "conv"],
        "num_dense_layers": 1,
    },
    "lfm2": {
        "num_hidden_layers": 3,
        "layer_types": ["conv", "full_attention", "conv"],
        "block_multiple_of": 8,
        "block_auto_adjust_ff_dim": False,
    },
    # A window of each rate is within the tiny models' lengths, and more of them than are chosen.
    "deepseek_v4": {
        "num_hidden_layers": 3,
        "layer_types": [
            "sliding_attention",
            "compressed_sparse_attention",
            "heavily_compressed_attention",
        ],
        "mlp_layer_types": ["hash_moe", "moe", "moe"],
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
        "index_topk": 3,
        "hc_sinkhorn_iters": 3,
        "o_groups": 2,
    },
    "reformer": {"axial_pos_embds_dim": [16, 32], "axial_pos_shape": [8, 12]},
    "gemma3n_text": _GEMMA3N,
    "gemma3n": {"text_config": _GEMMA3N},
    "gemma4_text": _GEMMA4,
    "gemma4_unified_text": _GEMMA4,
    "falcon_h1": {"mamba_n_heads": 6, "mamba_d_head": 16, "mamba_d_ssm": 96},
    # Each token's value is of those up to it where attention is of this kind alone.
    "xlnet": {"d_head": 8, "attn_type": "uni"},
    "qwen4_exp_text": _INDEXED,
    "qwen4_exp": {"text_config": _INDEXED},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 96,
    },
    "codegen": {"n_head": 4},
    # Buckets of distances up to one are divided by its logarithm over half their number.
    "prophetnet": {"relative_max_distance": 48},
    "xlm": {"causal": True},
    # In two parts the model itself fails.
    "xlstm": {"max_inference_chunksize": 64},
    "doge": {"keep_window_size": 96},
    "gemma4": {"text_config": _GEMMA4},
    "gemma4_unified": {"text_config": _GEMMA4},
    "gemma4_assistant": {"text_config": _ASSISTANT},
    "gemma4_unified_assistant": {"text_config": _ASSISTANT},
    "longcat_flash": {
        "qk_nope_head_dim": 10,
        "qk_rope_head_dim": 8,
        "qk_head_dim": 18,
        "head_dim": 8,
        "v_head_dim": 12,
    },
    # A third of a head rotates, an even number; sliding layers have twice the key heads.
    "mimo_v2_flash": {"head_dim": 24, "num_attention_heads": 8},
    "xmod": {"default_language": "en_XX"},
    # Checkpoints name the base, the class does not.
    "dbrx": {
        "ffn_config": {"moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 1.5},
    },
    "dots3_note_text": _BY_KIND,
    "dots3_note": {"text_config": _BY_KIND},
}
