"""Seed-OSS: Llama with biases on queries, keys and values."""

from __future__ import annotations

from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family
from shoal.models.families.metadata import GgufMetadata
from shoal.models.spec import ModelSpec


def _from_config(config: ConfigJson) -> ModelSpec:
    return config.model(config.dense_layers([0] * config.layers))


def _from_metadata(meta: GgufMetadata) -> ModelSpec:
    return meta.model(meta.dense_layers())


FAMILY = Family("seed_oss", "Seed-OSS", _from_config, _from_metadata)
