"""Qwen3 with experts. Its GGUF files do not say that the experts' weights are renormalised, which they always are."""

from __future__ import annotations

from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family
from shoal.models.families.metadata import GgufMetadata
from shoal.models.families.sparse_layers import sparse
from shoal.models.families.windows import from_some_layer_on
from shoal.models.spec import Experts, LayerSpec, ModelSpec, Routing


def _from_config(config: ConfigJson) -> ModelSpec:
    routing = Routing(config.whole("num_experts_per_tok"), renormalised=bool(config.get("norm_topk_prob", False)))
    experts = Experts(config.experts_count(), config.whole("moe_intermediate_size"), routing, config.activation)
    windows, with_experts = from_some_layer_on(config), sparse(config)
    return config.model(
        config.each_layer(
            lambda i: LayerSpec(config.grouped_query(window=windows[i], qk_norm="head"), experts if with_experts[i] else config.dense())
        )
    )


def _from_metadata(meta: GgufMetadata) -> ModelSpec:
    return meta.model(meta.like(meta.grouped_query(qk_norm="head"), meta.experts(Routing(meta.chosen, renormalised=True))))


FAMILY = Family("qwen3_moe", "Qwen3-MoE", _from_config, _from_metadata, "qwen3moe")
