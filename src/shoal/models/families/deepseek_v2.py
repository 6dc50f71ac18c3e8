"""DeepSeek-V2 and its like: latent attention, experts that every row takes, dense layers first. GGUF files of V3 say `deepseek2`, too."""

from __future__ import annotations

import math

from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family, Stored
from shoal.models.families.metadata import GgufMetadata
from shoal.models.families.tensor_names import TensorPiece, gguf, hugging_face
from shoal.models.spec import Experts, Latent, LayerSpec, ModelSpec, Routing


def _from_config(config: ConfigJson) -> ModelSpec:
    limited = str(config.get("topk_method") or "greedy") == "group_limited_greedy"
    routing = Routing(
        config.whole("num_experts_per_tok"),
        scale=float(config.get("routed_scaling_factor", 1.0)),
        groups=int(config.get("n_group") or 1) if limited else 1,
        groups_chosen=int(config.get("topk_group") or 1) if limited else 1,
    )
    return mixed(config, routing, int(config.get("first_k_dense_replace") or 0))


def mixed(config: ConfigJson, routing: Routing, dense_first: int) -> ModelSpec:
    """Latent attention; so many dense layers, then layers with experts."""
    width = config.whole("moe_intermediate_size")
    shared = width * int(config.get("n_shared_experts") or 0)
    attention = config.latent()
    experts = Experts(config.experts_count(), width, routing, config.activation, shared=shared)
    return config.model(config.each_layer(lambda i: LayerSpec(attention, config.dense() if i < dense_first else experts)))


def _latent(meta: GgufMetadata) -> Latent:
    rope_dim, rank = meta.whole("rope.dimension_count"), meta.whole("attention.kv_lora_rank")
    # Files whose k_b and v_b are apart call the widths of keys and values as if there was one head of latent vectors.
    key = meta.whole("attention.key_length_mla" if "attention.key_length_mla" in meta else "attention.key_length")
    value = meta.whole("attention.value_length_mla" if "attention.value_length_mla" in meta else "attention.value_length")
    rope, scale = meta.rope(head_dim=rope_dim, attention_factor=1.0), key**-0.5
    if rope.kind == "yarn":
        scale *= (1 + float(meta.get("rope.scaling.yarn_log_multiplier", 0.0)) * math.log(rope.factor)) ** 2
    return Latent(
        q_heads=meta.whole("attention.head_count"),
        kv_rank=rank,
        nope_dim=key - rope_dim,
        rope_dim=rope_dim,
        value_dim=value,
        rope=rope,
        scale=scale,
        q_rank=int(meta.get("attention.q_lora_rank", 0)),
    )


def _from_metadata(meta: GgufMetadata) -> ModelSpec:
    width, attention = meta.whole("expert_feed_forward_length"), _latent(meta)
    experts = meta.experts(meta.routing(), width, shared=width * int(meta.get("expert_shared_count", 0)))
    dense_first = int(meta.get("leading_dense_block_count", 0))
    return meta.model([LayerSpec(attention, meta.dense() if i < dense_first else experts) for i in range(meta.layers)])


HUGGING_FACE_NAMES = hugging_face(
    q=("self_attn.q_b_proj", "self_attn.q_proj"),
    q_a="self_attn.q_a_proj",
    q_a_norm="self_attn.q_a_layernorm",
    kv_a="self_attn.kv_a_proj_with_mqa",
    kv_a_norm="self_attn.kv_a_layernorm",
    k_b=TensorPiece("self_attn.kv_b_proj", heads="keys"),
    v_b=TensorPiece("self_attn.kv_b_proj", heads="values"),
    selection_bias=TensorPiece("mlp.gate.e_score_correction_bias", suffix=""),
    shared__gate="mlp.shared_experts.gate_proj",
    shared__up="mlp.shared_experts.up_proj",
    shared__down="mlp.shared_experts.down_proj",
)
_GGUF_NAMES = gguf(
    q=("attn_q_b", "attn_q"),
    q_a="attn_q_a",
    q_a_norm="attn_q_a_norm",
    kv_a="attn_kv_a_mqa",
    kv_a_norm="attn_kv_a_norm",
    k_b=("attn_k_b", TensorPiece("attn_kv_b", heads="keys")),
    v_b=("attn_v_b", TensorPiece("attn_kv_b", heads="values")),
)
FAMILY = Family(
    "deepseek_v2",
    "DeepSeek-V2",
    _from_config,
    _from_metadata,
    "deepseek2",
    safetensors=Stored(HUGGING_FACE_NAMES, interleaved=True),
    gguf=Stored(_GGUF_NAMES, interleaved=True),
)
