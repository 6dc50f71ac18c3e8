"""Granite-MoE: Granite with experts, and in some versions one that every row takes."""

from __future__ import annotations

from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family, Stored
from shoal.models.families.granite import scaled, scaled_metadata
from shoal.models.families.metadata import GgufMetadata
from shoal.models.families.tensor_names import FUSED_GATE_UP, GGUF, TensorPiece, hugging_face, stacked
from shoal.models.spec import Experts, ModelSpec, Routing


def _routing(chosen: int) -> Routing:
    return Routing(chosen, "softmax of the chosen")


def experts(config: ConfigJson) -> Experts:
    shared = int(config.get("shared_intermediate_size") or 0)
    routing = _routing(config.whole("num_experts_per_tok"))
    return Experts(config.experts_count(), config.whole("intermediate_size"), routing, config.activation, shared=shared)


def _from_config(config: ConfigJson) -> ModelSpec:
    return scaled(config, experts(config))


def _from_metadata(meta: GgufMetadata) -> ModelSpec:
    width = meta.whole("expert_feed_forward_length" if "expert_feed_forward_length" in meta else "feed_forward_length")
    shared = int(meta.get("expert_shared_feed_forward_length", 0))
    return scaled_metadata(meta, meta.experts(_routing(meta.chosen), width, shared=shared))


_GATE_UP = TensorPiece("block_sparse_moe.input_linear", FUSED_GATE_UP, stacked=True)
EXPERTS: dict[str, str | TensorPiece] = {
    "router": "block_sparse_moe.router.layer",
    "experts.gate": _GATE_UP,
    "experts.up": _GATE_UP,
    "experts.down": stacked("block_sparse_moe.output_linear"),
    "shared.gate": TensorPiece("shared_mlp.input_linear", FUSED_GATE_UP),
    "shared.up": TensorPiece("shared_mlp.input_linear", FUSED_GATE_UP),
    "shared.down": "shared_mlp.output_linear",
}
"""Safetensors' names of what is not as in other families."""
FAMILY = Family(
    "granitemoe",
    "Granite-MoE",
    _from_config,
    _from_metadata,
    aliases=("granitemoeshared",),
    safetensors=Stored(hugging_face(**EXPERTS)),
    gguf=Stored(GGUF, interleaved=True),
)
