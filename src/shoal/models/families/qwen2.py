"""Qwen2 and 2.5: biases on queries, keys and values, and windows from some layer on where they are asked for."""

from __future__ import annotations

from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family
from shoal.models.families.metadata import GgufMetadata
from shoal.models.families.windows import from_some_layer_on
from shoal.models.spec import ModelSpec


def _from_config(config: ConfigJson) -> ModelSpec:
    return config.model(config.dense_layers(from_some_layer_on(config)))


def _from_metadata(meta: GgufMetadata) -> ModelSpec:
    return meta.model(meta.dense_layers())


FAMILY = Family("qwen2", "Qwen2", _from_config, _from_metadata, biases=("q", "k", "v"))
