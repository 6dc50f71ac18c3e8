"""Granite: factors on the embedding, on what is added, on attention and on the logits."""

from __future__ import annotations

from typing import Any

from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family, Stored
from shoal.models.families.metadata import GgufMetadata
from shoal.models.families.tensor_names import GGUF
from shoal.models.spec import Dense, Experts, ModelSpec


def scaled(config: ConfigJson, feed_forward: Dense | Experts) -> ModelSpec:
    attention = config.grouped_query(scale=float(config.get("attention_multiplier", 1.0)))
    return config.model(
        config.like(attention, feed_forward, residual_scale=float(config.get("residual_multiplier", 1.0))),
        embedding_scale=float(config.get("embedding_multiplier", 1.0)),
        logit_scale=1 / float(config.get("logits_scaling", 1.0)),
    )


def scaled_metadata(meta: GgufMetadata, feed_forward: Dense | Experts) -> ModelSpec:
    scale: dict[str, Any] = {"scale": float(meta.get("attention.scale", 0.0))}
    return meta.model(
        meta.like(meta.grouped_query(**scale), feed_forward, residual_scale=float(meta.get("residual_scale", 1.0))),
        embedding_scale=float(meta.get("embedding_scale", 1.0)),
        logit_scale=1 / float(meta.get("logit_scale", 1.0)),
    )


def _from_config(config: ConfigJson) -> ModelSpec:
    return scaled(config, config.dense())


def _from_metadata(meta: GgufMetadata) -> ModelSpec:
    return scaled_metadata(meta, meta.dense())


FAMILY = Family("granite", "Granite", _from_config, _from_metadata, gguf=Stored(GGUF, interleaved=True))
