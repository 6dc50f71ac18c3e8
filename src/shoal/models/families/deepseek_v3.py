"""DeepSeek-V3, R1 and their like: as V2, with sigmoid scores and a bias for the choice. GGUF files say `deepseek2`."""

from __future__ import annotations

from shoal.models.families.biased_routing import biased
from shoal.models.families.config import ConfigJson
from shoal.models.families.deepseek_v2 import HUGGING_FACE_NAMES, mixed
from shoal.models.families.family import Family, Stored
from shoal.models.spec import ModelSpec


def _from_config(config: ConfigJson) -> ModelSpec:
    if not config.get("rope_interleave", True):
        raise config.unsupported("rope_interleave false is not supported")
    return mixed(config, biased(config), int(config.get("first_k_dense_replace") or 0))


FAMILY = Family("deepseek_v3", "DeepSeek-V3", _from_config, safetensors=Stored(HUGGING_FACE_NAMES, interleaved=True))
