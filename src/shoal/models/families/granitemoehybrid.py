"""Granite 4.0 where it is not hybrid: Granite whose MLP is called a shared one. Its GGUF files say `granite`, with experts `granitemoe`."""

from __future__ import annotations

from typing import cast

from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family, Stored
from shoal.models.families.granite import scaled
from shoal.models.families.granitemoe import EXPERTS, experts
from shoal.models.families.tensor_names import FUSED_GATE_UP, hugging_face, rows_of
from shoal.models.spec import ModelSpec


def _from_config(config: ConfigJson) -> ModelSpec:
    kinds = cast("list[str]", config.get("layer_types") or config.get("layers_block_type") or ["linear_attention"])
    if not set(kinds) <= {"attention", "full_attention"}:
        raise config.unsupported("layers with a recurrent state (Mamba) are not supported")
    if config.get("position_embedding_type") != "rope":
        raise config.unsupported("a model without rotation (position_embedding_type) is not supported")
    if config.get("num_local_experts", 8):
        return scaled(config, experts(config))
    return scaled(config, config.dense(config.whole("shared_intermediate_size")))


_NAMES = hugging_face(**EXPERTS, **rows_of("shared_mlp.input_linear", FUSED_GATE_UP), down="shared_mlp.output_linear")
FAMILY = Family("granitemoehybrid", "Granite 4.0", _from_config, safetensors=Stored(_NAMES))
