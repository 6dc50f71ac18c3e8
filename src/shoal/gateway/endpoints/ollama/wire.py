"""The bodies of Ollama's endpoints."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from shoal.errors import InvalidRequest
from shoal.gateway.answers.conversation import MAX_MESSAGES, JsonAnswer, Tools
from shoal.gateway.endpoints.chat.wire import Function
from shoal.gateway.schema.variables import Effort
from shoal.gateway.schema.wire import ModelBody, SampledBody, Wire

TEMPERATURE, TOP_K, TOP_P = 0.8, 40, 0.9
"""Ollama's defaults."""


class Options(Wire):
    """Options for loading a model are accepted and unused, because it is already loaded."""

    inert: ClassVar[dict[str, tuple[Any, ...]]] = {
        "mirostat": (None, 0),
        "tfs_z": (None, 1, 1.0),
        "typical_p": (None, 1, 1.0),
    }

    num_predict: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    num_ctx: int | None = None
    num_keep: int | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    main_gpu: int | None = None
    num_thread: int | None = None
    numa: bool | None = None
    low_vram: bool | None = None
    f16_kv: bool | None = None
    logits_all: bool | None = None
    vocab_only: bool | None = None
    embedding_only: bool | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    penalize_newline: bool | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None

    def most(self) -> int | None:
        """Tokens of the answer; None: as many as fit. Raises InvalidRequest."""
        if self.num_predict is None or self.num_predict in (-1, -2):
            return None
        if self.num_predict < 1:
            raise InvalidRequest("options.num_predict must be at least 1, or -1 for as many as fit", "options.num_predict")
        return self.num_predict

    def sampled(self, stream: bool) -> SampledBody:
        def given(value: Any, default: Any) -> Any:
            return default if value is None else value

        penalty = None if self.repeat_last_n == 0 else self.repeat_penalty
        return SampledBody(
            stream=stream,
            temperature=given(self.temperature, TEMPERATURE),
            top_k=max(given(self.top_k, TOP_K), 0),
            top_p=given(self.top_p, TOP_P) or 1.0,
            min_p=self.min_p,
            repetition_penalty=penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=None if self.seed is None or self.seed < 0 else self.seed,
            stop=self.stop,
        )


class Loading(ModelBody):
    """keep_alive: accepted, unused: the model stays loaded. options: see Options."""

    keep_alive: float | str | None = None
    options: dict[str, Any] | None = None


_CUTTING: dict[str, tuple[Any, ...]] = {"truncate": (None, False), "shift": (None, False)}
"""What Ollama does with a conversation that is too long."""


class Speaking(Loading):
    stream: bool | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None
    think: bool | Literal["low", "medium", "high"] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    def asked_effort(self) -> Effort | None:
        """Effort of thinking; None: the model's default."""
        if self.think is None:
            return None
        return self.think if isinstance(self.think, str) else "medium" if self.think else "none"

    def answer(self) -> JsonAnswer | None:
        """The required form of the answer; None: any text."""
        return None if not self.format else JsonAnswer(None if self.format == "json" else self.format, False, "format")


class GenerateRequest(Speaking):
    inert: ClassVar[dict[str, tuple[Any, ...]]] = {
        **_CUTTING,
        "suffix": (None, ""),
        "template": (None, ""),
        "images": (None, []),
        "width": (None, 0),
        "height": (None, 0),
        "steps": (None, 0),
    }

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    context: list[int] | None = None


class CalledFunction(Wire):
    """index: its place among the calls, as it came with an answer."""

    name: str
    arguments: dict[str, Any]
    index: int | None = None
    description: str | None = None


class ToolCall(Wire):
    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledFunction


class Message(Wire):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class Tool(Wire):
    type: Literal["function"] | None = None
    function: Function


class ChatRequest(Speaking):
    inert: ClassVar[dict[str, tuple[Any, ...]]] = _CUTTING

    messages: Annotated[list[Message], Field(max_length=MAX_MESSAGES, fail_fast=True)] = Field(default_factory=list[Message])
    tools: list[Tool] | None = None

    def asked_tools(self) -> Tools:
        return Tools([tool.function.asked(f"tools.{i}.function") for i, tool in enumerate(self.tools or ())])


class EmbedRequest(Loading):
    input: str | list[str]
    truncate: bool | None = None
    dimensions: int | None = None


class EmbeddingsRequest(Loading):
    """The older endpoint's."""

    prompt: str


class ShowRequest(ModelBody):
    """name: the older name of model."""

    name: str | None = None
    verbose: bool | None = None
