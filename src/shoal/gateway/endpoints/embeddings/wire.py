"""The body of an embedding request."""

from __future__ import annotations

from typing import Literal

from shoal.gateway.schema.prompts import Prompts
from shoal.gateway.schema.wire import Wire


class EmbeddingRequest(Wire):
    input: Prompts
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None
