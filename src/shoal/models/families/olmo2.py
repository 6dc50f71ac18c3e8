"""OLMo 2: norms after instead of before, and of all queries and all keys at once. GGUF files of OLMo 3, too."""

from __future__ import annotations

from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family, Stored
from shoal.models.families.metadata import GgufMetadata
from shoal.models.families.tensor_names import gguf, hugging_face
from shoal.models.spec import LayerSpec, ModelSpec


def _from_config(config: ConfigJson) -> ModelSpec:
    layers = config.like(config.grouped_query(qk_norm="full"), config.dense(), norms="after")
    return config.model(layers, eps=float(config.get("rms_norm_eps", 1e-5)))


_PATTERN = 4  # in files of OLMo 3, every fourth layer sees everything


def _from_metadata(meta: GgufMetadata) -> ModelSpec:
    everything, window_only = meta.rope(), meta.rope(scaled=False)
    windows = [meta.window if (i + 1) % _PATTERN else 0 for i in range(meta.layers)]
    return meta.model(
        [
            LayerSpec(meta.grouped_query(window=w, rope=window_only if w else everything, qk_norm="full"), meta.dense(), "after")
            for w in windows
        ]
    )


_NAMES = hugging_face(attention_after_norm="post_attention_layernorm", mlp_after_norm="post_feedforward_layernorm")
GGUF_NAMES = gguf(attention_after_norm="post_attention_norm", mlp_after_norm="post_ffw_norm")
SAFETENSORS = Stored(_NAMES)
FAMILY = Family("olmo2", "OLMo 2", _from_config, _from_metadata, safetensors=SAFETENSORS, gguf=Stored(GGUF_NAMES))
