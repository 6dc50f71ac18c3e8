"""Llama, all versions whose layers are alike; also what is written in its form, such as SmolLM2 and TinyLlama. GGUF files of Mixtral, too."""

from __future__ import annotations

from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family, Stored
from shoal.models.families.metadata import GgufMetadata
from shoal.models.families.tensor_names import GGUF
from shoal.models.spec import ModelSpec, Routing


def _from_config(config: ConfigJson) -> ModelSpec:
    return config.model(config.dense_layers([0] * config.layers))  # a `sliding_window` in its config.json means nothing


def _from_metadata(meta: GgufMetadata) -> ModelSpec:
    if not int(meta.get("expert_count", 0)):
        return meta.model(meta.dense_layers())
    experts = meta.experts(Routing(meta.chosen, renormalised=True), meta.whole("feed_forward_length"))
    return meta.model(meta.like(meta.grouped_query(), experts))


FAMILY = Family("llama", "Llama", _from_config, _from_metadata, gguf=Stored(GGUF, interleaved=True))
