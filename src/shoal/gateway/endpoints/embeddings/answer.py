"""The shape of embeddings, for the OpenAPI document."""

from __future__ import annotations

from typing import Literal

from shoal.gateway.schema.wire import Shape


class Embedding(Shape):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    """Numbers, or base64 of little-endian float32."""


class EmbeddingUsage(Shape):
    prompt_tokens: int
    total_tokens: int


class EmbeddingAnswer(Shape):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
