"""Sizes of a tiny transformers model of each family beyond the four of tiny.py, and the models, with every weight random.

Every width is one that llama.cpp loads, and each model has what its family is known for: layers without experts, groups of experts, windows
that alternate, layers without rope.
"""

from __future__ import annotations

from typing import Any

import torch

from tests.support import tiny

_LATENT = {
    "num_key_value_heads": 4,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "head_dim": 16,
}
_SIGMOID = {"scoring_func": "sigmoid", "norm_topk_prob": True, "routed_scaling_factor": 2.5}
_WINDOWS = ["sliding_attention", "full_attention"]
_SCALES = {"embedding_multiplier": 12.0, "logits_scaling": 6.0, "residual_multiplier": 0.22, "attention_multiplier": 0.0625}
_DBRX_ATTENTION = {"kv_n_heads": 2, "clip_qkv": 2.0, "rope_theta": 5000.0}
_BESIDE_IMAGES: dict[str, dict[str, Any]] = {
    "gemma3": {
        **tiny.SIZES,
        "model_type": "gemma3_text",
        "tie_word_embeddings": True,
        "num_hidden_layers": 7,
        "query_pre_attn_scalar": 16,
        "sliding_window": 20,
    },
    "mistral3": {**tiny.SIZES, "model_type": "mistral", "sliding_window": None},
}
"""Language models."""
_VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
_EYES = {**_VISION, "model_type": "pixtral", "head_dim": 16}

SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("mixtral", {"num_local_experts": 8, "num_experts_per_tok": 2}),
    "qwen2 moe": (
        "qwen2_moe",
        {
            "intermediate_size": 128,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 64,
            "num_experts": 8,
            "num_experts_per_tok": 4,
        },
    ),
    "qwen3 moe": (
        "qwen3_moe",
        {
            "head_dim": 32,
            "intermediate_size": 128,
            "moe_intermediate_size": 32,
            "num_experts": 16,
            "num_experts_per_tok": 4,
            "norm_topk_prob": True,
        },
    ),
    "olmoe": ("olmoe", {"num_key_value_heads": 4, "intermediate_size": 32, "num_experts": 16, "num_experts_per_tok": 4}),
    "gpt-oss": (
        "gpt_oss",
        {
            "num_hidden_layers": 4,
            "intermediate_size": 64,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "sliding_window": 16,
            "layer_types": _WINDOWS * 2,
            "rope_parameters": {**tiny.YARN, "rope_theta": 5000.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
        },
    ),
    "deepseek v2": (
        "deepseek_v2",
        {
            **_LATENT,
            "scoring_func": "softmax",
            "q_lora_rank": 48,
            "n_routed_experts": 8,
            "n_shared_experts": 2,
            "num_experts_per_tok": 3,
            "routed_scaling_factor": 1.5,
        },
    ),
    "deepseek v2 lite": (  # llama.cpp knows it by its 27 layers
        "deepseek_v2",
        {
            **_LATENT,
            "scoring_func": "softmax",
            "num_hidden_layers": 27,
            "q_lora_rank": None,
            "n_routed_experts": 8,
            "n_shared_experts": 2,
            "num_experts_per_tok": 3,
        },
    ),
    "deepseek v2 groups": (
        "deepseek_v2",
        {
            **_LATENT,
            "scoring_func": "softmax",
            "q_lora_rank": 48,
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "num_experts_per_tok": 3,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
        },
    ),
    "deepseek v3": (
        "deepseek_v3",
        {
            **_LATENT,
            **_SIGMOID,
            "q_lora_rank": 48,
            "n_routed_experts": 16,
            "n_shared_experts": 1,
            "num_experts_per_tok": 4,
            "n_group": 4,
            "topk_group": 2,
            "num_nextn_predict_layers": 0,
        },
    ),
    "glm4 moe": (
        "glm4_moe",
        {
            **_SIGMOID,
            "intermediate_size": 128,
            "moe_intermediate_size": 32,
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "first_k_dense_replace": 1,
            "attention_bias": True,
            "use_qk_norm": True,
            "num_nextn_predict_layers": 1,
        },
    ),
    "granite moe": ("granitemoe", {**_SCALES, "num_local_experts": 8, "num_experts_per_tok": 2}),
    "granite moe shared": (
        "granitemoeshared",
        {**_SCALES, "shared_intermediate_size": 64, "num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    "minimax m2": (
        "minimax_m2",
        {
            "head_dim": 32,
            "rotary_dim": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5},
            "scoring_func": "sigmoid",
            "num_local_experts": 8,
            "num_experts_per_tok": 4,
        },
    ),
    "dbrx": (
        "dbrx",
        {
            "d_model": 64,
            "n_heads": 4,
            "n_layers": 3,
            "max_seq_len": 512,
            "attn_config": _DBRX_ATTENTION,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
            "ffn_config": {"ffn_hidden_size": 64, "hidden_size": 64, "moe_num_experts": 8, "moe_top_k": 4},
        },
    ),
    "gemma": ("gemma", {"tie_word_embeddings": True, "head_dim": 32}),
    "gemma2": (
        "gemma2",
        {
            "tie_word_embeddings": True,
            "num_hidden_layers": 4,
            "query_pre_attn_scalar": 16,
            "sliding_window": 20,
            "layer_types": _WINDOWS * 2,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 10.0,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            "tie_word_embeddings": True,
            "num_hidden_layers": 7,
            "query_pre_attn_scalar": 16,
            "sliding_window": 20,
            "layer_types": ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
        },
    ),
    "gemma3 beside images": (
        "gemma3",
        {"tie_word_embeddings": True, "text_config": _BESIDE_IMAGES["gemma3"], "vision_config": _VISION, "mm_tokens_per_image": 4},
    ),
    "mistral beside images": ("mistral3", {"text_config": _BESIDE_IMAGES["mistral3"], "vision_config": _EYES}),
    "phi3": ("phi3", {"num_key_value_heads": 2, "original_max_position_embeddings": 512, "sliding_window": None}),
    "phi3 longrope": (
        "phi3",
        {
            "original_max_position_embeddings": 64,
            "sliding_window": None,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 5000.0,
                "short_factor": [1.0, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6],
                "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 9.0],
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "phi4 mini": (
        "phi3",
        {
            "tie_word_embeddings": True,
            "original_max_position_embeddings": 512,
            "sliding_window": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.75},
            "head_dim": 32,
            "hidden_size": 128,
        },
    ),
    "granite": ("granite", {**_SCALES}),
    "granite 4": (
        "granitemoehybrid",
        {
            **_SCALES,
            "num_local_experts": 0,
            "shared_intermediate_size": 96,
            "position_embedding_type": "rope",
            "layer_types": ["full_attention"] * 3,
            "mamba_n_heads": 4,
        },
    ),
    "olmo2": ("olmo2", {"num_key_value_heads": 2}),
    "olmo3": (
        "olmo3",
        {
            "num_hidden_layers": 4,
            "sliding_window": 20,
            "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
            "rope_parameters": {kind: {"rope_type": "default", "rope_theta": 5000.0} for kind in ("sliding_attention", "full_attention")},
        },
    ),
    "smollm3": (
        "smollm3",
        {"tie_word_embeddings": True, "num_hidden_layers": 5, "no_rope_layers": [1, 1, 1, 0, 1], "layer_types": ["full_attention"] * 5},
    ),
    "glm4": ("glm4", {"attention_bias": True}),
    "glm": ("glm", {"attention_bias": True}),
    "glm4 moe lite": (
        "glm4_moe_lite",
        {
            **_LATENT,
            **_SIGMOID,
            "num_hidden_layers": 4,
            "q_lora_rank": 48,
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "mlp_layer_types": ["dense", "dense", "sparse", "sparse"],
        },
    ),
    "ernie 4.5": ("ernie4_5", {"tie_word_embeddings": True}),
    "ernie 4.5 moe": (
        "ernie4_5_moe",
        {
            "intermediate_size": 128,
            "moe_intermediate_size": 32,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_num_shared_experts": 2,
            "moe_layer_start_index": 1,
        },
    ),
    "seed-oss": ("seed_oss", {"head_dim": 32, "attention_bias": True}),
    "dots1": (
        "dots1",
        {
            **_SIGMOID,
            "num_key_value_heads": 4,
            "intermediate_size": 128,
            "moe_intermediate_size": 32,
            "n_routed_experts": 8,
            "n_shared_experts": 2,
            "num_experts_per_tok": 3,
            "first_k_dense_replace": 1,
            "sliding_window": None,
        },
    ),
    "exaone4": ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 3}),
    "exaone4 windows": (
        "exaone4",
        {
            "num_hidden_layers": 5,
            "sliding_window": 20,
            "layer_types": ["sliding_attention"] * 3 + ["full_attention", "sliding_attention"],
        },
    ),
    "cohere": ("cohere", {"tie_word_embeddings": True, "logit_scale": 0.5, "layer_norm_eps": 1e-5}),
    "cohere2": (
        "cohere2",
        {
            "tie_word_embeddings": True,
            "num_hidden_layers": 5,
            "sliding_window": 20,
            "layer_types": ["sliding_attention"] * 3 + ["full_attention", "sliding_attention"],
            "logit_scale": 0.0625,
            "layer_norm_eps": 1e-5,
        },
    ),
}
"""Name: transformers' model_type, and what of its configuration differs from the sizes of tiny_sizes.py."""


@torch.no_grad()
def model(name: str, seed: int = 0, **changes: Any) -> Any:
    """The model that `name` has in SIZES. changes: of its configuration."""
    family, sizes = SIZES[name]
    if "text_config" in sizes:
        changes = {**changes, "text_config": {**sizes["text_config"], **changes}}
    built = tiny.model(family, seed, **{**sizes, **changes})
    for label, values in built.named_buffers():
        if label.endswith("e_score_correction_bias"):
            values.copy_(torch.randn_like(values) * 0.2)
    return built
