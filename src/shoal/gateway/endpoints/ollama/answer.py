"""The shapes of Ollama's answers, for the OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from shoal.gateway.schema.wire import Shape


class TopLogprob(Shape):
    token: str
    logprob: float | None
    bytes: list[int]


class Logprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class Called(Shape):
    index: int
    name: str
    arguments: dict[str, Any]


class Call(Shape):
    id: str
    function: Called


class Said(Shape):
    """thinking, tool_calls: there where there are any."""

    role: Literal["assistant"]
    content: str
    thinking: str = ""
    tool_calls: list[Call] = Field(default_factory=list[Call])


class Spoken(Shape):
    """What comes after `done` is there with the end alone; durations are nanoseconds."""

    model: str
    created_at: str
    done: bool
    done_reason: Literal["stop", "length", "load"] = "stop"
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0
    logprobs: list[Logprob] = Field(default_factory=list[Logprob])


class OllamaGenerated(Spoken):
    response: str
    thinking: str = ""
    context: list[int] = Field(default_factory=list[int])


class OllamaChatted(Spoken):
    message: Said


class OllamaEmbedded(Shape):
    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OllamaEmbedding(Shape):
    embedding: list[float]


class Details(Shape):
    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class Tag(Shape):
    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details


class OllamaTags(Shape):
    models: list[Tag]


class Running(Shape):
    name: str
    model: str
    size: int
    digest: str
    details: Details
    expires_at: str
    size_vram: int
    context_length: int


class OllamaRunning(Shape):
    models: list[Running]


class OllamaShown(Shape):
    license: str
    modelfile: str
    parameters: str
    template: str
    modified_at: str
    details: Details
    model_info: dict[str, Any]
    capabilities: list[Literal["completion", "tools", "thinking", "embedding"]]


class OllamaVersion(Shape):
    version: str
