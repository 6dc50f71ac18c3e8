"""Facts about a model that others need: its sizes, and how it is stored."""

from __future__ import annotations

import msgspec


class ModelFacts(msgspec.Struct, frozen=True):
    family: str
    """As config.json and GGUF name architectures: llama, qwen2, …"""
    layers: int
    hidden: int
    intermediate: int
    q_heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    """Tokens that the model was made for; how many are served is another matter."""
    parameters: int
    bytes: int
    """Of its matrices, as they are stored."""
    container: str
    """gguf or safetensors."""
    quantization: str
    """Of most of its matrices: Q4_K, BF16, …"""
