"""ERNIE 4.5 with experts: softmax scores with a bias for the choice, in some versions experts that every row takes, dense layers first."""

from __future__ import annotations

from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family, Stored
from shoal.models.families.metadata import GgufMetadata
from shoal.models.families.tensor_names import GGUF, TensorPiece, hugging_face
from shoal.models.spec import Experts, LayerSpec, ModelSpec, Routing


def _routing(chosen: int) -> Routing:
    return Routing(chosen, renormalised=True, selection_bias=True)


def _from_config(config: ConfigJson) -> ModelSpec:
    width, attention, dense = config.whole("moe_intermediate_size"), config.grouped_query(), config.dense()
    shared = width * int(config.get("moe_num_shared_experts") or 0)
    experts = Experts(config.whole("moe_num_experts"), width, _routing(config.whole("moe_k")), config.activation, shared=shared)
    first, step = int(config.get("moe_layer_start_index", 1)), int(config.get("moe_layer_interval") or 1)
    last = int(config.get("moe_layer_end_index", -1)) % config.layers
    return config.model(
        config.each_layer(lambda i: LayerSpec(attention, experts if first <= i <= last and (i + 1) % step == 0 else dense)),
        tied=bool(config.get("tie_word_embeddings", True)),
        eps=float(config.get("rms_norm_eps", 1e-5)),
    )


def _from_metadata(meta: GgufMetadata) -> ModelSpec:
    attention, dense = meta.grouped_query(), meta.dense()
    experts = meta.experts(_routing(meta.chosen), shared=int(meta.get("expert_shared_feed_forward_length", 0)))
    first, step = int(meta.get("leading_dense_block_count", 0)), max(int(meta.get("interleave_moe_layer_step", 1)), 1)
    return meta.model([LayerSpec(attention, experts if first <= i and (i + 1) % step == 0 else dense) for i in range(meta.layers)])


_NAMES = hugging_face(
    selection_bias=TensorPiece("mlp.moe_statics.e_score_correction_bias", suffix=""),
    shared__gate="mlp.shared_experts.gate_proj",
    shared__up="mlp.shared_experts.up_proj",
    shared__down="mlp.shared_experts.down_proj",
)
FAMILY = Family(
    "ernie4_5_moe",
    "ERNIE 4.5-MoE",
    _from_config,
    _from_metadata,
    "ernie4_5-moe",
    safetensors=Stored(_NAMES, interleaved=True),
    gguf=Stored(GGUF, interleaved=True),
)
