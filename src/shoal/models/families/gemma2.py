"""Gemma 2: a scaled embedding, norms before and after, soft caps, a window in every other layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family, Stored
from shoal.models.families.metadata import GgufMetadata
from shoal.models.families.tensor_names import gguf, hugging_face
from shoal.models.families.windows import by_type
from shoal.models.spec import LayerSpec, ModelSpec


def _from_config(config: ConfigJson) -> ModelSpec:
    windows = by_type(config) or [0 if i % 2 else config.window for i in range(config.layers)]
    return with_windows(config, windows, lambda window: {})


def with_windows(config: ConfigJson, windows: Sequence[int], attention: Callable[[int], dict[str, Any]]) -> ModelSpec:
    """attention: what a later version says of the attention under a window, 0 for none."""
    layers = config.windowed(
        windows,
        lambda window: LayerSpec(
            config.grouped_query(
                window=window,
                scale=float(config.get("query_pre_attn_scalar") or config.head_dim) ** -0.5,
                cap=float(config.get("attn_logit_softcapping") or 0),
                **attention(window),
            ),
            config.dense(),
            "both",
        ),
    )
    return config.model(
        layers,
        tied=bool(config.get("tie_word_embeddings", True)),
        embedding_scale=config.hidden**0.5,
        logit_cap=float(config.get("final_logit_softcapping") or 0),
    )


_LARGEST = 46  # layers of the 27B, whose scale is another one; the file does not say it


def _from_metadata(meta: GgufMetadata) -> ModelSpec:
    scale = (meta.hidden / meta.whole("attention.head_count")) ** -0.5 if meta.layers == _LARGEST else 0.0
    cap = float(meta.get("attn_logit_softcapping", 50.0))
    layers = [
        LayerSpec(meta.grouped_query(window=0 if i % 2 else meta.window, scale=scale, cap=cap), meta.dense("gelu"), "both")
        for i in range(meta.layers)
    ]
    return meta.model(layers, embedding_scale=meta.hidden**0.5, logit_cap=float(meta.get("final_logit_softcapping", 30.0)))


HUGGING_FACE_NAMES = hugging_face(
    attention_after_norm="post_attention_layernorm", mlp_norm="pre_feedforward_layernorm", mlp_after_norm="post_feedforward_layernorm"
)
GGUF_NAMES = gguf(attention_after_norm="post_attention_norm", mlp_norm="ffn_norm", mlp_after_norm="post_ffw_norm")
FAMILY = Family(
    "gemma2",
    "Gemma 2",
    _from_config,
    _from_metadata,
    safetensors=Stored(HUGGING_FACE_NAMES, norms_less_one=True),
    gguf=Stored(GGUF_NAMES),
)
