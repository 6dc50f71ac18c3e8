"""The shape of a chat answer, for the OpenAPI document."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shoal.gateway.schema.wire import ServiceTier, Shape, UsageAnswer

Finish = Literal["stop", "length", "tool_calls", "cancelled"]


class TopToken(Shape):
    token: str
    logprob: float | None
    bytes: list[int] | None


class ScoredToken(TopToken):
    top_logprobs: list[TopToken]


class ChatLogprobs(Shape):
    content: list[ScoredToken] | None
    refusal: None


class CalledFunction(Shape):
    name: str
    arguments: str


class ToolCall(Shape):
    id: str
    type: Literal["function"]
    function: CalledFunction


class CustomText(Shape):
    name: str
    input: str


class CustomToolCall(Shape):
    id: str
    type: Literal["custom"]
    custom: CustomText


class ChatMessage(Shape):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str = ""
    """Present if the model reasoned."""
    tool_calls: list[ToolCall | CustomToolCall] = Field(default_factory=list[ToolCall | CustomToolCall])


class ChatChoice(Shape):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class ChatAnswer(Shape):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    service_tier: ServiceTier
    choices: list[ChatChoice]
    usage: UsageAnswer
