"""OLMo 3: OLMo 2 with a window in three of four layers, whose rotation is not scaled. Its GGUF files say that they are OLMo 2's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family
from shoal.models.families.olmo2 import SAFETENSORS
from shoal.models.families.windows import by_type
from shoal.models.spec import LayerSpec, ModelSpec, Rope

_PATTERN = 4


def _from_config(config: ConfigJson) -> ModelSpec:
    windows = by_type(config) or [config.window if (i + 1) % _PATTERN else 0 for i in range(config.layers)]
    told = cast("Mapping[str, Any]", config.get("rope_parameters") or {})
    if "full_attention" in told:
        everything, window_only = config.rope(told["full_attention"]), config.rope(told["sliding_attention"])
    else:
        everything = config.rope()
        window_only = Rope(theta=everything.theta)
    layers = config.windowed(
        windows,
        lambda window: LayerSpec(
            config.grouped_query(window=window, rope=window_only if window else everything, qk_norm="full"), config.dense(), "after"
        ),
    )
    return config.model(layers, eps=float(config.get("rms_norm_eps", 1e-5)))


FAMILY = Family("olmo3", "OLMo 3", _from_config, safetensors=SAFETENSORS)
