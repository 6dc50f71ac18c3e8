"""The body of a completion request."""

from __future__ import annotations

from typing import Any, ClassVar

from shoal.gateway.schema.prompts import Prompts
from shoal.gateway.schema.wire import SampledBody


class CompletionRequest(SampledBody):
    inert: ClassVar[dict[str, tuple[Any, ...]]] = {"suffix": (None, "")}

    prompt: Prompts
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
