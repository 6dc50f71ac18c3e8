"""Command R7B and its like: both parts of a layer take one input under one layer norm; only layers with a window are rotated."""

from __future__ import annotations

from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family, Stored
from shoal.models.families.metadata import GgufMetadata
from shoal.models.families.tensor_names import GGUF, HUGGING_FACE
from shoal.models.families.windows import by_type
from shoal.models.spec import LayerSpec, ModelSpec

_STEP = 4


def _from_config(config: ConfigJson) -> ModelSpec:
    step = int(config.get("sliding_window_pattern") or _STEP)
    windows = by_type(config) or [config.window if (i + 1) % step else 0 for i in range(config.layers)]
    rope = config.rope()
    layers = config.windowed(
        windows,
        lambda window: LayerSpec(config.grouped_query(window=window, rope=rope if window else None), config.dense(), parallel=True),
    )
    return config.model(
        layers,
        tied=bool(config.get("tie_word_embeddings", True)),
        eps=float(config.get("layer_norm_eps", 1e-5)),
        norm="layer",
        logit_scale=float(config.get("logit_scale", 0.0625)),
    )


def _from_metadata(meta: GgufMetadata) -> ModelSpec:
    rope = meta.rope()
    windows = [meta.window if (i + 1) % _STEP else 0 for i in range(meta.layers)]
    layers = [LayerSpec(meta.grouped_query(window=w, rope=rope if w else None), meta.dense(), parallel=True) for w in windows]
    eps = float(meta.need("attention.layer_norm_epsilon"))
    return meta.model(layers, eps=eps, norm="layer", logit_scale=float(meta.get("logit_scale", 1.0)))


STORED_SAFETENSORS, STORED_GGUF = Stored(HUGGING_FACE, interleaved=True), Stored(GGUF, interleaved=True)
FAMILY = Family("cohere2", "Cohere2", _from_config, _from_metadata, safetensors=STORED_SAFETENSORS, gguf=STORED_GGUF)
