"""Mixtral: Mistral with experts. Its GGUF files say that they are Llama's."""

from __future__ import annotations

from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family, Stored
from shoal.models.families.tensor_names import hugging_face
from shoal.models.spec import Experts, ModelSpec, Routing


def _from_config(config: ConfigJson) -> ModelSpec:
    routing = Routing(config.whole("num_experts_per_tok"), renormalised=True)
    experts = Experts(config.experts_count(), config.whole("intermediate_size"), routing, config.activation)
    return config.model(config.like(config.grouped_query(window=config.window), experts))


_NAMES = hugging_face(
    router="block_sparse_moe.gate",
    experts__gate="block_sparse_moe.experts.{expert}.w1",
    experts__up="block_sparse_moe.experts.{expert}.w3",
    experts__down="block_sparse_moe.experts.{expert}.w2",
)
FAMILY = Family("mixtral", "Mixtral", _from_config, safetensors=Stored(_NAMES))
