"""GLM-4.5 and 4.6: DeepSeek-V3's choice of experts over grouped-query attention with partial rotation.

Files may have layers after the last one, which predict tokens ahead; they are not run.
"""

from __future__ import annotations

from shoal.models.families.biased_routing import biased
from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family, Stored
from shoal.models.families.metadata import GgufMetadata
from shoal.models.families.tensor_names import TensorPiece, hugging_face
from shoal.models.spec import Experts, LayerSpec, ModelSpec


def _from_config(config: ConfigJson) -> ModelSpec:
    width = config.whole("moe_intermediate_size")
    shared = width * int(config.get("n_shared_experts") or 0)
    experts = Experts(config.experts_count(), width, biased(config), config.activation, shared=shared)
    attention = config.grouped_query(qk_norm="head" if config.get("use_qk_norm") else "")
    dense_first = int(config.get("first_k_dense_replace") or 0)
    return config.model(config.each_layer(lambda i: LayerSpec(attention, config.dense() if i < dense_first else experts)))


def _from_metadata(meta: GgufMetadata) -> ModelSpec:
    width = meta.whole("expert_feed_forward_length")
    attention = meta.grouped_query(qk_norm="head" if "blk.0.attn_q_norm.weight" in meta.shapes else "")
    experts = meta.experts(meta.routing(), width, shared=width * int(meta.get("expert_shared_count", 0)))
    dense_first, layers = int(meta.get("leading_dense_block_count", 0)), meta.layers - int(meta.get("nextn_predict_layers", 0))
    return meta.model([LayerSpec(attention, meta.dense() if i < dense_first else experts) for i in range(layers)])


HUGGING_FACE_NAMES = hugging_face(
    selection_bias=TensorPiece("mlp.gate.e_score_correction_bias", suffix=""),
    shared__gate="mlp.shared_experts.gate_proj",
    shared__up="mlp.shared_experts.up_proj",
    shared__down="mlp.shared_experts.down_proj",
)
FAMILY = Family("glm4_moe", "GLM-4.5", _from_config, _from_metadata, "glm4moe", safetensors=Stored(HUGGING_FACE_NAMES))
