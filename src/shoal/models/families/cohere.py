"""Command R and Aya, the first ones: as Cohere2 without windows. Command R+ normalises queries and keys in its own way and is not run."""

from __future__ import annotations

from shoal.models.families.cohere2 import STORED_GGUF, STORED_SAFETENSORS
from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family
from shoal.models.families.metadata import GgufMetadata
from shoal.models.spec import ModelSpec

_NORMED = "layer norms of queries and keys (Command R+) are not supported"


def _from_config(config: ConfigJson) -> ModelSpec:
    if config.get("use_qk_norm"):
        raise config.unsupported(_NORMED)
    return config.model(
        config.like(config.grouped_query(), config.dense(), parallel=True),
        tied=bool(config.get("tie_word_embeddings", True)),
        eps=float(config.get("layer_norm_eps", 1e-5)),
        norm="layer",
        logit_scale=float(config.get("logit_scale", 0.0625)),
    )


def _from_metadata(meta: GgufMetadata) -> ModelSpec:
    if "blk.0.attn_q_norm.weight" in meta.shapes:
        raise meta.unsupported(_NORMED)
    layers = meta.like(meta.grouped_query(), meta.dense(), parallel=True)
    eps = float(meta.need("attention.layer_norm_epsilon"))
    return meta.model(layers, eps=eps, norm="layer", logit_scale=float(meta.get("logit_scale", 1.0)))


FAMILY = Family("cohere", "Command R", _from_config, _from_metadata, "command-r", safetensors=STORED_SAFETENSORS, gguf=STORED_GGUF)
