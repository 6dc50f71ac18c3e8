"""Tiny transformers models, with every weight random (norms and biases too)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from tests.support.tiny_sizes import SIZES

TOKENS = [(7 * i * i + 3 * i + 1) % 97 for i in range(75)]
"""Longer than two KV blocks."""

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


def model(family: str, seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**SIZES, **changes})
    images = type(config) not in AutoModelForCausalLM._model_mapping
    auto = AutoModelForImageTextToText if images else AutoModelForCausalLM
    built = auto.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            vector = parameter.ndim == 1
            one = vector and "norm" in name and not family.startswith("gemma")  # Gemma's norms are stored less one
            parameter.copy_(torch.randn_like(parameter) * (0.3 if vector else 0.15) + one)
        for name, buffer in built.named_buffers():
            if "correction_bias" in name:
                buffer.copy_(torch.randn_like(buffer) * 0.2)
    return built


def saved(built: Any, directory: Path, **options: Any) -> Path:
    built.save_pretrained(directory, **options)
    return directory


@torch.no_grad()
def logits(built: Any, tokens: list[int]) -> np.ndarray:
    """[tokens, vocabulary]"""
    return built(torch.tensor([tokens])).logits[0].float().numpy()
