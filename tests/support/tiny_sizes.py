"""The sizes of the tiny models, for tests that make one without torch."""

from __future__ import annotations

from typing import Any

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 97,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "use_cache": False,
    "pad_token_id": 0,
}

_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LATENT: dict[str, Any] = {
    **_EXPERTS,
    "num_key_value_heads": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "head_dim": 16,  # transformers' configuration rotates by it
}
OF_FAMILY: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen2_moe": {**_EXPERTS, "num_experts": 8, "shared_expert_intermediate_size": 48, "mlp_only_layers": [0]},
    "qwen3_moe": {**_EXPERTS, "num_experts": 16, "num_experts_per_tok": 4, "norm_topk_prob": True, "decoder_sparse_step": 1},
    "olmoe": {"num_experts": 16, "num_experts_per_tok": 4, "intermediate_size": 32, "clip_qkv": 0.8},
    "deepseek_v2": {**_LATENT, "n_routed_experts": 8, "q_lora_rank": None, "topk_method": "greedy", "n_shared_experts": 2},
    "deepseek_v3": {**_LATENT, "n_routed_experts": 16, "num_experts_per_tok": 4, "q_lora_rank": 48, "n_group": 4, "topk_group": 2},
    "gpt_oss": {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 64, "sliding_window": 16, "num_hidden_layers": 4},
    "glm4_moe": {
        **_EXPERTS,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "attention_bias": True,
        "use_qk_norm": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    },
    "granite": {"embedding_multiplier": 12.0, "logits_scaling": 6.0, "residual_multiplier": 0.22, "attention_multiplier": 0.0625},
    "granitemoe": {
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "intermediate_size": 32,
        "embedding_multiplier": 12.0,
        "logits_scaling": 6.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.0625,
    },
    "granitemoeshared": {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 32, "shared_intermediate_size": 48},
    "gemma2": {"sliding_window": 20, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    "gemma3_text": {"sliding_window": 20, "num_hidden_layers": 7, "query_pre_attn_scalar": 24},
    "phi3": {"sliding_window": 40},
    "olmo2": {},
    "smollm3": {"num_hidden_layers": 5, "no_rope_layer_interval": 4},
    "glm4": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}, "attention_bias": True},
    "cohere2": {"sliding_window": 20, "num_hidden_layers": 5, "logit_scale": 0.25},
    "dbrx": {
        "d_model": 64,
        "n_heads": 4,
        "n_layers": 3,
        "max_seq_len": 256,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 1.5, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "hidden_size": 64, "moe_num_experts": 8, "moe_top_k": 4},
    },
}
"""What a family's tiny model has besides or instead."""
