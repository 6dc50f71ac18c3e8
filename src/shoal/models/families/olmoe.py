"""OLMoE: queries and keys are normalised over all heads at once, and may be clipped."""

from __future__ import annotations

from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family
from shoal.models.families.metadata import GgufMetadata
from shoal.models.spec import Experts, ModelSpec, Routing


def _from_config(config: ConfigJson) -> ModelSpec:
    routing = Routing(config.whole("num_experts_per_tok"), renormalised=bool(config.get("norm_topk_prob", False)))
    experts = Experts(config.experts_count(), config.whole("intermediate_size"), routing, config.activation)
    attention = config.grouped_query(qk_norm="full", clip=float(config.get("clip_qkv") or 0))
    return config.model(config.like(attention, experts), eps=float(config.get("rms_norm_eps", 1e-5)))


def _from_metadata(meta: GgufMetadata) -> ModelSpec:
    attention = meta.grouped_query(qk_norm="full", clip=float(meta.get("attention.clamp_kqv", 0)))
    return meta.model(meta.like(attention, meta.experts(Routing(meta.chosen), meta.whole("feed_forward_length"))))


FAMILY = Family("olmoe", "OLMoE", _from_config, _from_metadata)
