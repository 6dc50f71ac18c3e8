"""EXAONE 4.0: norms after instead of before; in the large one, layers with a window, and no rotation in the others."""

from __future__ import annotations

from typing import cast

from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family, Stored
from shoal.models.families.metadata import GgufMetadata
from shoal.models.families.olmo2 import GGUF_NAMES, SAFETENSORS
from shoal.models.families.windows import by_type
from shoal.models.spec import LayerSpec, ModelSpec

_PATTERN = 4


def _from_config(config: ConfigJson) -> ModelSpec:
    windows, rope = by_type(config), config.rope()
    if config.window and not windows:
        step = int(config.get("sliding_window_pattern") or _PATTERN)
        windows = [config.window if (i + 1) % step else 0 for i in range(config.layers)]
    layers = config.windowed(
        windows or [0] * config.layers,
        lambda window: LayerSpec(
            config.grouped_query(window=window, rope=rope if window or not config.window else None, qk_norm="head"), config.dense(), "after"
        ),
    )
    return config.model(layers, eps=float(config.get("rms_norm_eps", 1e-5)))


def _from_metadata(meta: GgufMetadata) -> ModelSpec:
    rope, told = meta.rope(), meta.get("attention.sliding_window_pattern", _PATTERN)
    seen = (
        [bool(one) for one in cast("list[bool]", told)]
        if isinstance(told, list)
        else [bool((i + 1) % max(int(told), 1)) for i in range(meta.layers)]
    )
    if len(seen) != meta.layers:
        raise meta.unsupported("a list of layers that has not one entry for each")
    windows = [meta.window if windowed else 0 for windowed in seen]
    return meta.model(
        [
            LayerSpec(meta.grouped_query(window=w, rope=rope if w or not meta.window else None, qk_norm="head"), meta.dense(), "after")
            for w in windows
        ]
    )


FAMILY = Family("exaone4", "EXAONE 4.0", _from_config, _from_metadata, safetensors=SAFETENSORS, gguf=Stored(GGUF_NAMES))
