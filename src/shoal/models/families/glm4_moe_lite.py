"""GLM-4.7-Flash: DeepSeek-V3's layers, which have experts or not as a list says. Its GGUF files say that they are DeepSeek's."""

from __future__ import annotations

from typing import cast

from shoal.models.families.biased_routing import biased
from shoal.models.families.config import ConfigJson
from shoal.models.families.deepseek_v2 import HUGGING_FACE_NAMES, mixed
from shoal.models.families.family import Family, Stored
from shoal.models.spec import ModelSpec


def _from_config(config: ConfigJson) -> ModelSpec:
    if not config.get("rope_interleave", True):
        raise config.unsupported("rope_interleave false is not supported")
    kinds = cast("list[str]", config.get("mlp_layer_types") or [])
    dense_first = kinds.index("sparse") if "sparse" in kinds else len(kinds) or int(config.get("first_k_dense_replace", 1))
    if "dense" in kinds[dense_first:]:
        raise config.unsupported("dense layers after layers with experts are not supported")
    return mixed(config, biased(config), dense_first)


FAMILY = Family("glm4_moe_lite", "GLM-4.7-Flash", _from_config, safetensors=Stored(HUGGING_FACE_NAMES, interleaved=True))
