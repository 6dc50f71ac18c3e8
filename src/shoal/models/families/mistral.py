"""Mistral: Llama with a window in every layer (7B 0.1), or none. Its GGUF files say that they are Llama's."""

from __future__ import annotations

from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family
from shoal.models.families.windows import by_type
from shoal.models.spec import ModelSpec


def _from_config(config: ConfigJson) -> ModelSpec:
    return config.model(config.dense_layers(by_type(config) or [config.window] * config.layers))


FAMILY = Family("mistral", "Mistral", _from_config)
