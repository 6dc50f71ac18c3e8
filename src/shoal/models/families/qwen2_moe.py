"""Qwen1.5 and Qwen2 with experts: one that every row takes, weighted by a gate of its own, and some layers without."""

from __future__ import annotations

from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family, Stored
from shoal.models.families.metadata import GgufMetadata
from shoal.models.families.sparse_layers import sparse
from shoal.models.families.tensor_names import hugging_face
from shoal.models.families.windows import from_some_layer_on
from shoal.models.spec import Experts, LayerSpec, ModelSpec, Routing


def _from_config(config: ConfigJson) -> ModelSpec:
    routing = Routing(config.whole("num_experts_per_tok"), renormalised=bool(config.get("norm_topk_prob", False)))
    experts = Experts(
        config.experts_count(),
        config.whole("moe_intermediate_size"),
        routing,
        config.activation,
        shared=config.whole("shared_expert_intermediate_size"),
        shared_gate=True,
    )
    windows, with_experts = from_some_layer_on(config), sparse(config)
    return config.model(
        config.each_layer(
            lambda i: LayerSpec(config.grouped_query(window=windows[i]), experts if with_experts[i] else config.dense()),
        )
    )


def _from_metadata(meta: GgufMetadata) -> ModelSpec:
    width = meta.whole("expert_feed_forward_length")
    shared = int(meta.get("expert_shared_feed_forward_length", 0)) or meta.shapes.get("blk.0.ffn_gate_shexp.weight", (0,))[0]
    routing = Routing(meta.chosen, renormalised=bool(meta.get("expert_weights_norm", False)))
    return meta.model(meta.like(meta.grouped_query(), meta.experts(routing, width, shared=shared, shared_gate=True)))


_NAMES = hugging_face(
    shared__gate="mlp.shared_expert.gate_proj",
    shared__up="mlp.shared_expert.up_proj",
    shared__down="mlp.shared_expert.down_proj",
    shared_gate="mlp.shared_expert_gate",
)
FAMILY = Family("qwen2_moe", "Qwen2-MoE", _from_config, _from_metadata, "qwen2moe", safetensors=Stored(_NAMES))
