"""Phi-3, 3.5, 4 and 4-mini: fused matrices, long contexts by a list of factors, partial rotation in some."""

from __future__ import annotations

from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family, Stored
from shoal.models.families.metadata import GgufMetadata
from shoal.models.families.tensor_names import FUSED_GATE_UP, FUSED_QKV, gguf, hugging_face, rows_of
from shoal.models.spec import ModelSpec


def _from_config(config: ConfigJson) -> ModelSpec:
    return config.model(config.dense_layers([config.window] * config.layers), eps=float(config.get("rms_norm_eps", 1e-5)))


def _from_metadata(meta: GgufMetadata) -> ModelSpec:
    return meta.model(meta.dense_layers())


_NAMES = hugging_face(**rows_of("self_attn.qkv_proj", FUSED_QKV), **rows_of("mlp.gate_up_proj", FUSED_GATE_UP))
_GGUF_NAMES = gguf(**rows_of("attn_qkv", FUSED_QKV), **rows_of("ffn_up", FUSED_GATE_UP))
FAMILY = Family("phi3", "Phi-3 and 4", _from_config, _from_metadata, safetensors=Stored(_NAMES), gguf=Stored(_GGUF_NAMES))
