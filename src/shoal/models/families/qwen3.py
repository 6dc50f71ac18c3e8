"""Qwen3: queries and keys are normalised per head, and have no biases; else as Qwen2."""

from __future__ import annotations

from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family
from shoal.models.families.metadata import GgufMetadata
from shoal.models.families.windows import from_some_layer_on
from shoal.models.spec import ModelSpec


def _from_config(config: ConfigJson) -> ModelSpec:
    return config.model(config.dense_layers(from_some_layer_on(config), qk_norm="head"))


def _from_metadata(meta: GgufMetadata) -> ModelSpec:
    return meta.model(meta.dense_layers(qk_norm="head"))


FAMILY = Family("qwen3", "Qwen3", _from_config, _from_metadata)
