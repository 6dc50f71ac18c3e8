"""SmolLM3: Llama without rotation in every fourth layer."""

from __future__ import annotations

from typing import cast

from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family, Stored
from shoal.models.families.metadata import GgufMetadata
from shoal.models.families.tensor_names import GGUF
from shoal.models.families.windows import by_type
from shoal.models.spec import LayerSpec, ModelSpec

_STEP = 4


def _from_config(config: ConfigJson) -> ModelSpec:
    step = int(config.get("no_rope_layer_interval") or _STEP)
    rotated = cast("list[int]", config.get("no_rope_layers") or [(i + 1) % step for i in range(config.layers)])
    windows = (by_type(config) if config.get("use_sliding_window") else []) or [0] * config.layers
    if {len(rotated), len(windows)} != {config.layers}:
        raise config.unsupported("a list of layers that has not one entry for each")
    rope = config.rope()
    return config.model(
        config.each_layer(
            lambda i: LayerSpec(config.grouped_query(rope=rope if rotated[i] else None, window=windows[i]), config.dense()),
        ),
        tied=bool(config.get("tie_word_embeddings", True)),
    )


def _from_metadata(meta: GgufMetadata) -> ModelSpec:
    rope = meta.rope()
    layers = [LayerSpec(meta.grouped_query(rope=rope if (i + 1) % _STEP else None, window=0), meta.dense()) for i in range(meta.layers)]
    return meta.model(layers)


FAMILY = Family("smollm3", "SmolLM3", _from_config, _from_metadata, gguf=Stored(GGUF, interleaved=True))
