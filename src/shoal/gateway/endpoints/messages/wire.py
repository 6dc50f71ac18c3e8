"""The body of a request for a message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Discriminator, Field, Tag, field_validator
from pydantic_core import PydanticCustomError

from shoal.errors import InvalidRequest
from shoal.gateway.answers import conversation
from shoal.gateway.answers.conversation import MAX_MESSAGES, JsonAnswer, Tools
from shoal.gateway.schema.variables import Effort
from shoal.gateway.schema.wire import ModelBody, SampledBody, Wire

_BILLING = "x-anthropic-billing-header:"
"""The beginning of Claude Code's own line about itself. It is not for the model, and may differ from request to request."""


class Block(Wire):
    cache_control: dict[str, Any] | None = None
    """Accepted but unused: every prefix is cached."""


class Text(Block):
    """citations: as they came with an answer."""

    type: Literal["text"]
    text: str
    citations: list[Any] | None = None

    @property
    def said(self) -> str:
        return self.text


class TextSource(Wire):
    type: Literal["text"]
    media_type: Literal["text/plain"] = "text/plain"
    data: str


class BlockSource(Wire):
    type: Literal["content"]
    content: str | list[Text]


def _only_text(raw: Any) -> Any:
    kind = cast("dict[str, Any]", raw).get("type") if isinstance(raw, dict) else None
    if isinstance(kind, str) and kind not in ("text", "content"):
        raise PydanticCustomError(
            "unsupported_parameter", "a document's source is 'text' or 'content', not '{kind}': the model reads text", {"kind": kind[:64]}
        )
    return cast("Any", raw)


class Document(Block):
    type: Literal["document"]
    source: TextSource | BlockSource
    title: str | None = None
    context: str | None = None
    citations: dict[str, Any] | None = None

    _text = field_validator("source", mode="before")(_only_text)

    @field_validator("citations")
    @classmethod
    def _no_citations(cls, citations: dict[str, Any] | None) -> dict[str, Any] | None:
        if (citations or {}).get("enabled"):
            raise PydanticCustomError("unsupported_parameter", "citations are not supported")
        return citations

    @property
    def said(self) -> str:
        data = self.source.data if isinstance(self.source, TextSource) else _joined(self.source.content)
        return "\n".join(part for part in (self.title, self.context, data) if part)


class SearchResult(Block):
    type: Literal["search_result"]
    source: str
    title: str
    content: list[Text]
    citations: dict[str, Any] | None = None

    @property
    def said(self) -> str:
        return "\n".join((self.title, self.source, _joined(self.content)))


class Thinking(Wire):
    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class RedactedThinking(Wire):
    type: Literal["redacted_thinking"]
    data: str


class ToolUse(Block):
    """caller, toolset_name: as they came with an answer."""

    type: Literal["tool_use"]
    id: Annotated[str, Field(min_length=1, max_length=256)]
    name: str
    input: dict[str, Any]
    caller: dict[str, Any] | None = None
    toolset_name: None = None


def _block(known: Sequence[str]) -> Discriminator:
    """Tells blocks apart."""

    def kind(raw: object) -> str | None:
        given = cast("dict[str, Any]", raw).get("type") if isinstance(raw, dict) else getattr(raw, "type", None)
        return f"[{given}]"  # in brackets: not part of the field's name

    said = f"blocks have one of the types {', '.join(known)}; images and all others are not supported: the model reads text"
    return Discriminator(kind, custom_error_type="unsupported_parameter", custom_error_message=said)


_OF_RESULT = ("text", "document", "search_result")
Found = Annotated[
    Annotated[Text, Tag("[text]")] | Annotated[Document, Tag("[document]")] | Annotated[SearchResult, Tag("[search_result]")],
    _block(_OF_RESULT),
]


class ToolResult(Block):
    type: Literal["tool_result"]
    tool_use_id: Annotated[str, Field(min_length=1, max_length=256)]
    content: str | list[Found] | None = None
    is_error: bool | None = None
    toolset_name: None = None

    @property
    def said(self) -> str:
        text = _joined(self.content or "")
        return f"Error: {text}" if self.is_error else text


_OF_USER = (*_OF_RESULT, "tool_result")
_OF_ASSISTANT = ("text", "thinking", "redacted_thinking", "tool_use")
Given = Annotated[
    Annotated[Text, Tag("[text]")]
    | Annotated[Document, Tag("[document]")]
    | Annotated[SearchResult, Tag("[search_result]")]
    | Annotated[Thinking, Tag("[thinking]")]
    | Annotated[RedactedThinking, Tag("[redacted_thinking]")]
    | Annotated[ToolUse, Tag("[tool_use]")]
    | Annotated[ToolResult, Tag("[tool_result]")],
    _block((*_OF_USER, *_OF_ASSISTANT[1:])),
]


class Message(Wire):
    """system: in the middle of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Given]

    def blocks(self, where: str) -> list[Given]:
        """Raises InvalidRequest for a block that the role may not have."""
        if isinstance(self.content, str):
            return [Text(type="text", text=self.content)]
        own = {"user": _OF_USER, "assistant": _OF_ASSISTANT, "system": ("text",)}[self.role]
        for at, block in enumerate(self.content):
            if block.type not in own:
                raise InvalidRequest(f"a message with the role '{self.role}' cannot have {block.type}", f"{where}.content.{at}.type")
        return self.content


def _joined(content: str | Sequence[Text | Document | SearchResult]) -> str:
    return content if isinstance(content, str) else "\n".join(block.said for block in content)


class Tool(Block):
    """defer_loading, eager_input_streaming: accepted, unused: every tool is told at once, and every input streamed as it comes."""

    type: Literal["custom"] | None = None
    name: str
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    input_examples: list[dict[str, Any]] | None = None
    defer_loading: bool | None = None
    eager_input_streaming: bool | None = None
    allowed_callers: list[Literal["direct"]] | None = None

    @field_validator("type", mode="before")
    @classmethod
    def _own(cls, kind: object) -> object:
        if isinstance(kind, str) and kind != "custom":
            raise PydanticCustomError(
                "unsupported_parameter",
                "'{kind}' is a tool of Anthropic's own, which this server does not have; give a tool of yours, with a name and an input_schema",
                {"kind": kind[:64]},
            )
        return kind

    def function(self, where: str) -> conversation.RequestedFunction:
        examples = "".join(f"\nExample: {conversation.compact(example)}" for example in self.input_examples or ())
        about = (self.description or "") + examples
        return conversation.RequestedFunction(self.name, about or None, self.input_schema, bool(self.strict), where)


class ToolChoice(Wire):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingConfig(Wire):
    """budget_tokens, display: accepted, unused. A reasoning model decides how long it thinks, and its reasoning is always returned."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: int | None = None
    display: str | None = None


class JsonFormat(Wire):
    type: Literal["json_schema"]
    definition: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(Wire):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonFormat | None = None


class Metadata(Wire):
    user_id: str | None = None


class CountRequest(ModelBody):
    """What a prompt is made from. context_management: accepted, unused: nothing of a conversation is left out here."""

    inert: ClassVar[dict[str, tuple[Any, ...]]] = {
        "billing_policy": (None,),
        "compaction": (None,),
        "container": (None,),
        "diagnostics": (None,),
        "fallback_credit_token": (None,),
        "fallbacks": (None, []),
        "inference_geo": (None,),
        "mcp_servers": (None, []),
        "speed": (None, "standard"),
        "thread": (None,),
        "user_profile_id": (None,),
        "workspace_id": (None,),
    }

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    system: str | list[Text] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    output_format: JsonFormat | None = None
    """The older name of output_config.format."""
    context_management: dict[str, Any] | None = None
    cache_control: dict[str, Any] | None = None

    def system_text(self) -> str:
        if isinstance(self.system, str):
            return self.system
        return "\n".join(block.text for block in self.system or () if not block.text.startswith(_BILLING))

    def answer(self) -> JsonAnswer | None:
        """The required form of the answer; None: any text. Raises InvalidRequest."""
        inside = None if self.output_config is None else self.output_config.format
        if inside is not None and self.output_format is not None:
            raise InvalidRequest("give output_config.format or output_format, not both", "output_format")
        format, where = (inside, "output_config.format") if self.output_format is None else (self.output_format, "output_format")
        return None if format is None else JsonAnswer(format.definition, False, where)

    def asked_effort(self) -> Effort:
        """Effort of thinking; clients that do not ask for thinking get none."""
        if self.thinking is None or self.thinking.type == "disabled":
            return "none"
        return (None if self.output_config is None else self.output_config.effort) or "medium"

    def asked_tools(self) -> Tools:
        """Raises InvalidRequest."""
        functions = [tool.function(f"tools.{i}") for i, tool in enumerate(self.tools or ())]
        choice = self.tool_choice or ToolChoice(type="auto")
        if (choice.type == "tool") != (choice.name is not None):
            raise InvalidRequest("tool_choice must have a name if its type is 'tool', and none otherwise", "tool_choice.name")
        allowed = None if choice.name is None else [choice.name]
        parallel = not choice.disable_parallel_tool_use and choice.type != "tool"
        return Tools(functions, choice.type != "none", choice.type in ("any", "tool"), allowed, parallel)


class MessagesRequest(CountRequest):
    max_tokens: int
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None

    def sampled(self) -> SampledBody:
        return SampledBody(
            stream=self.stream,
            stop=self.stop_sequences,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
        )
