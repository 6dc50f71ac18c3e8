"""Gemma, the first: Llama with a scaled embedding and GELU; norms' weights are stored less one."""

from __future__ import annotations

from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family, Stored
from shoal.models.families.metadata import GgufMetadata
from shoal.models.families.tensor_names import HUGGING_FACE
from shoal.models.spec import Dense, ModelSpec


def _from_config(config: ConfigJson) -> ModelSpec:
    config.only_causal()
    # The published files say 'gelu' and mean its approximation by tanh, as transformers does.
    activation = "gelu" if config.get("hidden_act") in (None, "gelu") else config.activation
    return config.model(
        config.like(config.grouped_query(), Dense(config.whole("intermediate_size"), activation)),
        tied=bool(config.get("tie_word_embeddings", True)),
        embedding_scale=config.hidden**0.5,
    )


def _from_metadata(meta: GgufMetadata) -> ModelSpec:
    return meta.model(meta.like(meta.grouped_query(), meta.dense("gelu")), embedding_scale=meta.hidden**0.5)


FAMILY = Family("gemma", "Gemma", _from_config, _from_metadata, safetensors=Stored(HUGGING_FACE, norms_less_one=True))
