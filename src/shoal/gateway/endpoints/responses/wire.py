"""The body of a request for a response."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Discriminator, Field, Tag

from shoal.errors import InvalidRequest
from shoal.gateway.answers import conversation
from shoal.gateway.answers.conversation import MAX_MESSAGES, JsonAnswer, Tools, check_name
from shoal.gateway.answers.custom import Syntax, custom_function
from shoal.gateway.schema.variables import Effort
from shoal.gateway.schema.wire import Echoed, Metadata, SampledBody, Wire, kind_of
from shoal.text.answer_grammar import MAX_TOOLS

Status = Literal["in_progress", "completed", "incomplete"]


class TextPart(Echoed):
    """Text of a message. All but the text says nothing to the model."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None
    cache_control: Any = None
    prompt_cache_breakpoint: Any = None


class Message(Echoed):
    type: Literal["message"] = "message"
    id: str | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    status: Status | None = None
    phase: str | None = None
    provider_specific_fields: Any = None


class FunctionCall(Echoed):
    type: Literal["function_call"]
    id: str | None = None
    call_id: str = Field(min_length=1, max_length=128)
    name: str
    arguments: str
    status: Status | None = None
    provider_specific_fields: Any = None


class ToolOutput(Echoed):
    """The result of a call of a function or custom tool."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    id: str | None = None
    call_id: str = Field(min_length=1, max_length=128)
    output: str | list[TextPart]
    status: Status | None = None


class CustomToolCall(Echoed):
    type: Literal["custom_tool_call"]
    id: str | None = None
    call_id: str = Field(min_length=1, max_length=128)
    name: str
    input: str
    status: Status | None = None


class SummaryText(Echoed):
    type: Literal["summary_text"]
    text: str


class ReasoningText(Echoed):
    type: Literal["reasoning_text"]
    text: str


class Reasoning(Echoed):
    """What an answer thought. Where its text is encrypted, it is some other server's, and nothing is known of it here."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: list[SummaryText] | None = None
    content: list[ReasoningText] | None = None
    encrypted_content: str | None = None
    status: Status | None = None
    format: Any = None


class CompactionItem(Echoed):
    """A compacted conversation; the content is the one that /v1/responses/compact returned."""

    type: Literal["compaction"]
    id: str | None = None
    encrypted_content: str


class ItemReference(Echoed):
    """An item of an earlier response's output."""

    type: Literal["item_reference"]
    id: str


def _kind(raw: object) -> str | None:
    """Which kind of item it is; a message need not say so."""
    kind = cast("dict[str, Any]", raw).get("type") if isinstance(raw, dict) else getattr(raw, "type", None)
    return f"[{'message' if kind is None else kind}]"  # in brackets: not part of the field's name


Item = Annotated[
    Annotated[Message, Tag("[message]")]
    | Annotated[FunctionCall, Tag("[function_call]")]
    | Annotated[ToolOutput, Tag("[function_call_output]")]
    | Annotated[CustomToolCall, Tag("[custom_tool_call]")]
    | Annotated[ToolOutput, Tag("[custom_tool_call_output]")]
    | Annotated[Reasoning, Tag("[reasoning]")]
    | Annotated[CompactionItem, Tag("[compaction]")]
    | Annotated[ItemReference, Tag("[item_reference]")],
    Discriminator(
        _kind,
        custom_error_type="item_type",
        custom_error_message="an item is a message, function_call, function_call_output, custom_tool_call, custom_tool_call_output, reasoning, "
        "compaction or item_reference",
    ),
]


class Format(Wire):
    """name, description, schema and strict belong to json_schema."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    definition: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None

    def answer(self) -> JsonAnswer | None:
        """None: any text. Raises InvalidRequest."""
        if self.type != "json_schema":
            if self.name is not None or self.definition is not None:
                raise InvalidRequest("name and schema need the type 'json_schema'", "text.format")
            return None if self.type == "text" else JsonAnswer(None, False, "text.format")
        if self.name is None or self.definition is None:
            raise InvalidRequest("a json_schema has a name and a schema", "text.format")
        check_name(self.name, "text.format.name")
        return JsonAnswer(self.definition, bool(self.strict), "text.format")


class TextConfig(Wire):
    format: Format | None = None
    verbosity: Literal["medium"] | None = None


class ReasoningConfig(Wire):
    """All fields but the effort choose how much of the reasoning is shown. shoal always shows all of it, unencrypted."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    mode: Literal["standard"] | None = None


class Function(Wire):
    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def asked(self, where: str) -> conversation.RequestedFunction:
        return conversation.RequestedFunction(self.name, self.description, self.parameters, bool(self.strict), where)


class CustomFormat(Wire):
    type: Literal["text", "grammar"]
    syntax: Syntax | None = None
    definition: str | None = None


class Custom(Wire):
    type: Literal["custom"]
    name: str
    description: str | None = None
    format: CustomFormat | None = None

    def asked(self, where: str) -> conversation.RequestedFunction:
        """Raises InvalidRequest."""
        format = self.format or CustomFormat(type="text")
        if [format.type == "grammar"] * 2 != [format.syntax is not None, format.definition is not None]:
            raise InvalidRequest("a format of type 'grammar' must have syntax and definition; other formats cannot", f"{where}.format")
        grammar = None if format.syntax is None or format.definition is None else (format.syntax, format.definition)
        return custom_function(self.name, self.description, grammar, where)


class CustomChoice(Wire):
    type: Literal["custom"]
    name: str


class NamedChoice(Wire):
    type: Literal["function"]
    name: str


class AllowedChoice(Wire):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedChoice | CustomChoice], Field(min_length=1, max_length=MAX_TOOLS)]


class ResponseRequest(SampledBody):
    inert: ClassVar[dict[str, tuple[Any, ...]]] = {
        "n": (None, 1),
        "max_tokens": (None,),
        "stream_options": (None, {}, {"include_obfuscation": False}),
        "access_programs": (None, {}),
        "background": (None, False),
        "background_options": (None, {}),
        "conversation": (None,),
        "context_management": (None, []),
        "max_tool_calls": (None,),
        "moderation": (None,),
        "prompt": (None,),
        "image": (None, {}, {"context_compression": "auto"}, {"context_compression": "disabled"}),
    }

    input: str | Annotated[list[Item], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    instructions: str | None = None
    max_output_tokens: int | None = None
    text: TextConfig | None = None
    tools: list[Annotated[Annotated[Function, Tag("[function]")] | Annotated[Custom, Tag("[custom]")], Discriminator(kind_of)]] | None = (
        None
    )
    tool_choice: Literal["auto", "none", "required"] | NamedChoice | CustomChoice | AllowedChoice | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    reasoning: ReasoningConfig | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    metadata: Metadata | None = None
    truncation: Literal["auto", "disabled"] | None = None
    include: list[str] | None = None
    top_logprobs: int | None = None

    def answer(self) -> JsonAnswer | None:
        """The required form of the answer; None: any text. Raises InvalidRequest."""
        return None if self.text is None or self.text.format is None else self.text.format.answer()

    def asked_tools(self) -> Tools:
        """Raises InvalidRequest."""
        functions = [tool.asked(f"tools.{i}") for i, tool in enumerate(self.tools or ())]
        parallel = self.parallel_tool_calls is not False
        match self.tool_choice:
            case NamedChoice(name=name) | CustomChoice(name=name):
                return Tools(functions, must=True, allowed=[name], parallel=False)
            case AllowedChoice(mode=mode, tools=allowed):
                return Tools(functions, must=mode == "required", allowed=[tool.name for tool in allowed], parallel=parallel)
            case choice:
                return Tools(functions, may=choice != "none", must=choice == "required", parallel=parallel)


class CompactRequest(SampledBody):
    """A conversation that is to become short."""

    inert: ClassVar[dict[str, tuple[Any, ...]]] = {
        "stream": (None, False),
        "stream_options": (None,),
        "n": (None, 1),
        "max_tokens": (None,),
        "ignore_eos": (False,),
        "stop": (None,),
        "logit_bias": (None, {}),
        "image": (None, {}, {"context_compression": "auto"}, {"context_compression": "disabled"}),
    }

    input: str | Annotated[list[Item], Field(max_length=MAX_MESSAGES, fail_fast=True)] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
