"""Llama, all versions whose layers are alike; also what is written in its form, such as SmolLM2 and TinyLlama."""

from __future__ import annotations

from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family
from shoal.models.families.metadata import GgufMetadata
from shoal.models.spec import LayerSpec


def _from_config(config: ConfigJson) -> tuple[LayerSpec, ...]:
    return config.dense_layers([0] * config.layers)  # a `sliding_window` in its config.json means nothing


FAMILY = Family("llama", "Llama", _from_config, GgufMetadata.dense_layers, interleaved=True)
