"""ERNIE 4.5 without experts: Llama that rotates in pairs."""

from __future__ import annotations

from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family, Stored
from shoal.models.families.metadata import GgufMetadata
from shoal.models.families.tensor_names import GGUF, HUGGING_FACE
from shoal.models.spec import ModelSpec


def _from_config(config: ConfigJson) -> ModelSpec:
    return config.model(
        config.dense_layers([0] * config.layers),
        tied=bool(config.get("tie_word_embeddings", True)),
        eps=float(config.get("rms_norm_eps", 1e-5)),
    )


def _from_metadata(meta: GgufMetadata) -> ModelSpec:
    return meta.model(meta.dense_layers())


FAMILY = Family(
    "ernie4_5",
    "ERNIE 4.5",
    _from_config,
    _from_metadata,
    safetensors=Stored(HUGGING_FACE, interleaved=True),
    gguf=Stored(GGUF, interleaved=True),
)
