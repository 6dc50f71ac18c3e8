"""OLMo 2: norms after instead of before, and of all queries and all keys at once."""

from __future__ import annotations

from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family, Stored
from shoal.models.families.metadata import GgufMetadata
from shoal.models.families.tensor_names import gguf, hugging_face
from shoal.models.spec import ModelSpec


def _from_config(config: ConfigJson) -> ModelSpec:
    layers = config.like(config.grouped_query(qk_norm="full"), config.dense(), norms="after")
    return config.model(layers, eps=float(config.get("rms_norm_eps", 1e-5)))


def _from_metadata(meta: GgufMetadata) -> ModelSpec:
    return meta.model(meta.like(meta.grouped_query(qk_norm="full", window=0), meta.dense(), norms="after"))


_NAMES = hugging_face(attention_after_norm="post_attention_layernorm", mlp_after_norm="post_feedforward_layernorm")
_GGUF_NAMES = gguf(attention_after_norm="post_attention_norm", mlp_after_norm="post_ffw_norm")
FAMILY = Family("olmo2", "OLMo 2", _from_config, _from_metadata, safetensors=Stored(_NAMES), gguf=Stored(_GGUF_NAMES))
