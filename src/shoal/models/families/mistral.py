"""Mistral: Llama with a window in every layer (7B 0.1), or none; the language model of Mistral Small 3.1. Its GGUF files say that they are Llama's."""

from __future__ import annotations

from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family, Stored
from shoal.models.families.tensor_names import HUGGING_FACE, beside_images
from shoal.models.families.windows import by_type
from shoal.models.spec import ModelSpec


def _from_config(whole: ConfigJson) -> ModelSpec:
    config = whole.language("mistral")
    return config.model(config.dense_layers(by_type(config) or [config.window] * config.layers))


FAMILY = Family("mistral", "Mistral", _from_config, aliases=("mistral3",), safetensors=Stored(beside_images(HUGGING_FACE)))
