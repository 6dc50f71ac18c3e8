"""The shape of a completion, for the OpenAPI document."""

from __future__ import annotations

from typing import Literal

from shoal.gateway.schema.wire import ServiceTier, Shape, UsageAnswer


class CompletionLogprobs(Shape):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Shape):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length", "cancelled"]


class CompletionAnswer(Shape):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    service_tier: ServiceTier
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: UsageAnswer
