"""The body of a request for a response."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Discriminator, Field, Tag

from shoal.errors import InvalidRequest
from shoal.gateway import conversation
from shoal.gateway.conversation import MAX_MESSAGES, JsonAnswer, Tools, check_name
from shoal.gateway.wire import Sampled, Wire
from shoal.text.grammar import MAX_TOOLS

Status = Literal["in_progress", "completed", "incomplete"]


class TextPart(Wire):
    """Text of a message. annotations, logprobs: as they came with an answer; they say nothing to the model."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class Message(Wire):
    type: Literal["message"] = "message"
    id: str | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    status: Status | None = None
    phase: str | None = None


class FunctionCall(Wire):
    type: Literal["function_call"]
    id: str | None = None
    call_id: str = Field(min_length=1, max_length=128)
    name: str
    arguments: str
    status: Status | None = None


class FunctionCallOutput(Wire):
    type: Literal["function_call_output"]
    id: str | None = None
    call_id: str = Field(min_length=1, max_length=128)
    output: str | list[TextPart]
    status: Status | None = None


class ItemReference(Wire):
    """An item of an earlier response's output."""

    type: Literal["item_reference"]
    id: str


def _kind(raw: object) -> str | None:
    """Which of the items it is; a message need not say so."""
    kind = cast("dict[str, Any]", raw).get("type") if isinstance(raw, dict) else getattr(raw, "type", None)
    return f"[{'message' if kind is None else kind}]"  # in brackets: no part of the field's name


Item = Annotated[
    Annotated[Message, Tag("[message]")]
    | Annotated[FunctionCall, Tag("[function_call]")]
    | Annotated[FunctionCallOutput, Tag("[function_call_output]")]
    | Annotated[ItemReference, Tag("[item_reference]")],
    Discriminator(
        _kind,
        custom_error_type="item_type",
        custom_error_message="an item is a message, function_call, function_call_output or item_reference",
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


class Function(Wire):
    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedChoice(Wire):
    type: Literal["function"]
    name: str


class AllowedChoice(Wire):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedChoice], Field(min_length=1, max_length=MAX_TOOLS)]


class ResponseRequest(Sampled):
    inert: ClassVar[dict[str, tuple[Any, ...]]] = {
        "n": (None, 1),
        "max_tokens": (None,),
        "stream_options": (None, {}, {"include_obfuscation": False}),
        "access_programs": (None, {}),
        "background": (None, False),
        "background_options": (None, {}),
        "conversation": (None,),
        "context_management": (None, []),
        "image": (None, {}),
        "max_tool_calls": (None,),
        "moderation": (None,),
        "prompt": (None,),
        "prompt_cache_options": (None,),
        "prompt_cache_retention": (None, "in_memory", "in-memory"),
        "reasoning": (None, {}, {"effort": None}, {"summary": None}, {"effort": None, "summary": None}),
    }

    input: str | Annotated[list[Item], Field(min_length=1, max_length=MAX_MESSAGES)]
    instructions: str | None = None
    max_output_tokens: int | None = None
    text: TextConfig | None = None
    tools: list[Function] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedChoice | AllowedChoice | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    metadata: Annotated[dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=16)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    include: list[str] | None = None
    top_logprobs: int | None = None

    def answer(self) -> JsonAnswer | None:
        """What it has to be; None: any text. Raises InvalidRequest."""
        return None if self.text is None or self.text.format is None else self.text.format.answer()

    def asked_tools(self) -> Tools:
        functions = [
            conversation.Function(f.name, f.description, f.parameters, bool(f.strict), f"tools.{i}") for i, f in enumerate(self.tools or ())
        ]
        parallel = self.parallel_tool_calls is not False
        match self.tool_choice:
            case NamedChoice(name=name):
                return Tools(functions, must=True, allowed=[name], parallel=False)
            case AllowedChoice(mode=mode, tools=allowed):
                return Tools(functions, must=mode == "required", allowed=[tool.name for tool in allowed], parallel=parallel)
            case choice:
                return Tools(functions, may=choice != "none", must=choice == "required", parallel=parallel)
