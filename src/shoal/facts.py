"""Facts about a model that other modules need: its sizes, and how it is stored."""

from __future__ import annotations

import msgspec


class ModelFacts(msgspec.Struct, frozen=True):
    family: str
    """The architecture's name in config.json and GGUF: llama, qwen2, …"""
    layers: int
    hidden: int
    intermediate: int
    q_heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    """Tokens that the model was trained for; the served context may be smaller."""
    parameters: int
    bytes: int
    """Of its matrices, as stored."""
    container: str
    """gguf or safetensors."""
    quantization: str
    """Of most of its matrices: Q4_K, BF16, …"""
    value_dim: int = 0
    """Of a head; 0: as head_dim."""
    experts: int = 0
    """Of a layer; 0: none."""
    experts_used: int = 0
    """By one token."""
