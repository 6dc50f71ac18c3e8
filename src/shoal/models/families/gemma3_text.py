"""Gemma 3, of those that take images the language model: as Gemma 2 with normalised queries and keys instead of soft caps, and another rotation under the windows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family, Stored
from shoal.models.families.gemma2 import GGUF_NAMES, HUGGING_FACE_NAMES, with_windows
from shoal.models.families.metadata import GgufMetadata
from shoal.models.families.tensor_names import beside_images
from shoal.models.families.windows import by_type
from shoal.models.spec import LayerSpec, ModelSpec, Rope

_DEFAULTS: dict[str, Any] = {
    "vocab_size": 262208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "rope_theta": 1e6,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
}
"""What configurations of the models that take images leave out."""
_PATTERN, _LOCAL_THETA = 6, 10000.0
"""Every sixth layer sees everything; the others rotate by this."""


def _ropes(config: ConfigJson) -> tuple[Rope, Rope]:
    """Of layers that see everything, and of those with a window."""
    told = cast("Mapping[str, Any]", config.get("rope_parameters") or {})
    if "full_attention" in told:
        return config.rope(told["full_attention"]), config.rope(told["sliding_attention"])
    return config.rope(), Rope(theta=float(config.get("rope_local_base_freq") or _LOCAL_THETA))


def _from_config(whole: ConfigJson) -> ModelSpec:
    config = whole.language("gemma3_text", **_DEFAULTS)
    config.only_causal()
    pattern = int(config.get("sliding_window_pattern") or _PATTERN)
    windows = by_type(config) or [config.window if (i + 1) % pattern else 0 for i in range(config.layers)]
    everything, window_only = _ropes(config)
    return with_windows(config, windows, lambda window: {"rope": window_only if window else everything, "qk_norm": "head"})


_LARGEST = 62  # layers of the 27B, whose scale is another one; the file does not say it


def _from_metadata(meta: GgufMetadata) -> ModelSpec:
    scale = (meta.hidden / meta.whole("attention.head_count")) ** -0.5 if meta.layers == _LARGEST else 0.0
    everything, window_only = meta.rope(), meta.rope(theta=_LOCAL_THETA, scaled=False)
    windows = [meta.window if (i + 1) % _PATTERN else 0 for i in range(meta.layers)]
    layers = [
        LayerSpec(
            meta.grouped_query(window=window, rope=window_only if window else everything, qk_norm="head", scale=scale),
            meta.dense("gelu"),
            "both",
        )
        for window in windows
    ]
    return meta.model(layers, embedding_scale=meta.hidden**0.5, logit_cap=float(meta.get("final_logit_softcapping", 0.0)))


FAMILY = Family(
    "gemma3_text",
    "Gemma 3",
    _from_config,
    _from_metadata,
    "gemma3",
    aliases=("gemma3",),
    safetensors=Stored(beside_images(HUGGING_FACE_NAMES), norms_less_one=True),
    gguf=Stored(GGUF_NAMES),
)
