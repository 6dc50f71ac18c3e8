"""GLM-4 of 2024 (9B-Chat and its like): partial rotation in pairs, biases, fused gate and up. GGUF files say `chatglm`."""

from __future__ import annotations

from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family, Stored
from shoal.models.families.metadata import GgufMetadata
from shoal.models.families.tensor_names import FUSED_GATE_UP, FUSED_QKV, TensorPiece, gguf, hugging_face, rows_of
from shoal.models.spec import ModelSpec


def _from_config(config: ConfigJson) -> ModelSpec:
    return config.model(config.dense_layers([0] * config.layers), eps=float(config.get("rms_norm_eps", 1.5625e-7)))


def _from_metadata(meta: GgufMetadata) -> ModelSpec:
    return meta.model(meta.dense_layers())


_QKV = TensorPiece("attn_qkv", FUSED_QKV)  # in files of the first checkpoints
_GGUF_NAMES = gguf(**rows_of("ffn_up", FUSED_GATE_UP), q=("attn_q", _QKV), k=("attn_k", _QKV), v=("attn_v", _QKV))
FAMILY = Family(
    "glm",
    "GLM-4 (2024)",
    _from_config,
    _from_metadata,
    "chatglm",
    safetensors=Stored(hugging_face(**rows_of("mlp.gate_up_proj", FUSED_GATE_UP)), interleaved=True),
    gguf=Stored(_GGUF_NAMES, interleaved=True),
)
