"""dots.llm1: Qwen3's attention with DeepSeek-V3's experts."""

from __future__ import annotations

from shoal.models.families.biased_routing import biased
from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family, Stored
from shoal.models.families.glm4_moe import HUGGING_FACE_NAMES
from shoal.models.families.metadata import GgufMetadata
from shoal.models.families.windows import by_type
from shoal.models.spec import Experts, LayerSpec, ModelSpec


def _from_config(config: ConfigJson) -> ModelSpec:
    width, dense = config.whole("moe_intermediate_size"), config.dense()
    shared = width * int(config.get("n_shared_experts") or 0)
    experts = Experts(config.experts_count(), width, biased(config), config.activation, shared=shared)
    dense_first, windows = int(config.get("first_k_dense_replace") or 0), by_type(config) or [0] * config.layers
    if len(windows) != config.layers:
        raise config.unsupported("a list of layers that has not one entry for each")
    return config.model(
        config.each_layer(
            lambda i: LayerSpec(config.grouped_query(window=windows[i], qk_norm="head"), dense if i < dense_first else experts),
        )
    )


def _from_metadata(meta: GgufMetadata) -> ModelSpec:
    width, attention, dense = meta.whole("expert_feed_forward_length"), meta.grouped_query(qk_norm="head"), meta.dense()
    experts = meta.experts(meta.routing(), width, shared=width * int(meta.get("expert_shared_count", 0)))
    dense_first = int(meta.get("leading_dense_block_count", 0))
    return meta.model([LayerSpec(attention, dense if i < dense_first else experts) for i in range(meta.layers)])


FAMILY = Family("dots1", "dots.llm1", _from_config, _from_metadata, safetensors=Stored(HUGGING_FACE_NAMES))
