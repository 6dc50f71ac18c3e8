"""MiniMax-M2: sigmoid scores with a bias for the choice, norms over all queries and all keys, partial rotation."""

from __future__ import annotations

from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family, Stored
from shoal.models.families.metadata import GgufMetadata
from shoal.models.families.tensor_names import TensorPiece, hugging_face
from shoal.models.spec import Experts, ModelSpec, Routing


def _routing(chosen: int) -> Routing:
    return Routing(chosen, "sigmoid", renormalised=True, selection_bias=True)


def _from_config(config: ConfigJson) -> ModelSpec:
    rotated = config.get("rotary_dim")  # as the published files say; later ones give the part of a head
    rope = config.rope(dims=int(rotated)) if rotated else config.rope()
    routing = _routing(config.whole("num_experts_per_tok"))
    experts = Experts(config.experts_count(), config.whole("intermediate_size"), routing, config.activation)
    return config.model(config.like(config.grouped_query(rope=rope, qk_norm="full"), experts))


def _from_metadata(meta: GgufMetadata) -> ModelSpec:
    return meta.model(meta.like(meta.grouped_query(qk_norm="full"), meta.experts(_routing(meta.chosen))))


_NAMES = hugging_face(
    router="block_sparse_moe.gate",
    selection_bias=TensorPiece("block_sparse_moe.e_score_correction_bias", suffix=""),
    experts__gate="block_sparse_moe.experts.{expert}.w1",
    experts__up="block_sparse_moe.experts.{expert}.w3",
    experts__down="block_sparse_moe.experts.{expert}.w2",
)
FAMILY = Family("minimax_m2", "MiniMax-M2", _from_config, _from_metadata, "minimax-m2", safetensors=Stored(_NAMES))
