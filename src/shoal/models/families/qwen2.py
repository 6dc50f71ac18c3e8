"""Qwen2 and 2.5: biases on queries, keys and values, and windows from some layer on where they are asked for."""

from __future__ import annotations

from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family
from shoal.models.families.metadata import GgufMetadata
from shoal.models.families.windows import from_some_layer_on
from shoal.models.spec import LayerSpec


def _from_config(config: ConfigJson) -> tuple[LayerSpec, ...]:
    return config.dense_layers(from_some_layer_on(config))


FAMILY = Family("qwen2", "Qwen2", _from_config, GgufMetadata.dense_layers)
