"""GLM-4 of 2025 (4-9B-0414 and its like): norms before and after, partial rotation in pairs, fused gate and up."""

from __future__ import annotations

from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family, Stored
from shoal.models.families.metadata import GgufMetadata
from shoal.models.families.tensor_names import FUSED_GATE_UP, gguf, hugging_face, rows_of
from shoal.models.spec import ModelSpec


def _from_config(config: ConfigJson) -> ModelSpec:
    return config.model(config.like(config.grouped_query(), config.dense(), norms="both"), eps=float(config.get("rms_norm_eps", 1.5625e-7)))


def _from_metadata(meta: GgufMetadata) -> ModelSpec:
    return meta.model(meta.like(meta.grouped_query(), meta.dense(), norms="both"))


_NAMES = hugging_face(
    **rows_of("mlp.gate_up_proj", FUSED_GATE_UP), attention_after_norm="post_self_attn_layernorm", mlp_after_norm="post_mlp_layernorm"
)
_GGUF_NAMES = gguf(
    **rows_of("ffn_up", FUSED_GATE_UP), attention_after_norm="post_attention_norm", mlp_norm="ffn_norm", mlp_after_norm="post_ffw_norm"
)
FAMILY = Family(
    "glm4", "GLM-4", _from_config, _from_metadata, safetensors=Stored(_NAMES, interleaved=True), gguf=Stored(_GGUF_NAMES, interleaved=True)
)
