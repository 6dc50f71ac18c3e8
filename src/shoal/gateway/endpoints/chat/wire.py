"""The body of a chat request."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, field_validator
from pydantic_core import PydanticCustomError

from shoal.errors import InvalidRequest
from shoal.gateway.answers import conversation
from shoal.gateway.answers.conversation import MAX_MESSAGES, JsonAnswer, Tools, call_arguments, check_name
from shoal.gateway.answers.custom import Syntax, called_with, custom_function
from shoal.gateway.schema.variables import Effort
from shoal.gateway.schema.wire import Echoed, Metadata, SampledBody, Wire, kind_of
from shoal.text.answer_grammar import MAX_TOOLS


class Part(Echoed):
    type: Literal["text", "refusal"]
    text: str | None = None
    refusal: str | None = None
    cache_control: Any = None
    prompt_cache_breakpoint: Any = None
    annotations: Any = None

    @field_validator("type", mode="before")
    @classmethod
    def _only_text(cls, kind: object) -> object:
        if isinstance(kind, str) and kind not in ("text", "refusal"):
            raise PydanticCustomError(
                "unsupported_parameter", "'{kind}' parts are not supported; the model reads text", {"kind": kind[:64]}
            )
        return kind


class FunctionCall(Echoed):
    name: str
    arguments: str


class ToolCall(Echoed):
    id: Annotated[str, Field(min_length=1, max_length=256)]
    type: Literal["function"]
    function: FunctionCall
    index: Any = None
    cache_control: Any = None
    provider_specific_fields: Any = None
    extra_content: Any = None

    def templated(self, where: str) -> dict[str, Any]:
        """Raises InvalidRequest."""
        check_name(self.function.name, f"{where}.function.name")
        if (arguments := call_arguments(self.function.arguments)) is None:
            raise InvalidRequest("a call's arguments must be a JSON object, written as a string", f"{where}.function.arguments")
        return {"id": self.id, "type": "function", "function": {"name": self.function.name, "arguments": arguments}}


class CustomInput(Echoed):
    name: str
    input: str


class CustomCall(Echoed):
    id: Annotated[str, Field(min_length=1, max_length=256)]
    type: Literal["custom"]
    custom: CustomInput
    index: Any = None

    def templated(self, where: str) -> dict[str, Any]:
        """Raises InvalidRequest."""
        check_name(self.custom.name, f"{where}.custom.name")
        return {"id": self.id, "type": "function", "function": {"name": self.custom.name, "arguments": called_with(self.custom.input)}}


class Message(Echoed):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: (
        list[Annotated[Annotated[ToolCall, Tag("[function]")] | Annotated[CustomCall, Tag("[custom]")], Discriminator(kind_of)]] | None
    ) = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    audio: None = None
    function_call: None = None

    # What servers and libraries put into messages that clients then send back. It means nothing to the model.
    annotations: Any = None
    cache_control: Any = None
    images: Annotated[list[Any], Field(max_length=0)] | None = None
    id: Any = None
    index: Any = None
    provider_specific_fields: Any = None
    reasoning_details: Any = None
    thinking_blocks: Any = None

    @field_validator("role", mode="before")
    @classmethod
    def _no_functions(cls, role: object) -> object:
        if role == "function":
            raise PydanticCustomError("unsupported_parameter", "the role 'function' is not supported; use 'tool'")
        return role

    @field_validator("function_call", mode="before")
    @classmethod
    def _no_function_call(cls, call: object) -> object:
        if call is not None:
            raise PydanticCustomError("unsupported_parameter", "'function_call' is not supported; use 'tool_calls'")
        return call

    def templated(self, where: str) -> conversation.Message:
        """In the form of chat templates. Raises InvalidRequest."""
        assistant, tool = self.role == "assistant", self.role == "tool"
        for name, mine in (("tool_calls", assistant), ("refusal", assistant), ("tool_call_id", tool)):
            if getattr(self, name) not in (None, []) and not mine:
                raise InvalidRequest(f"a message with the role '{self.role}' cannot have {name}", f"{where}.{name}")
        if self.content is None and not (assistant and (self.tool_calls or self.refusal)):
            raise InvalidRequest(f"a message with the role '{self.role}' needs content", f"{where}.content")
        known: conversation.Message = {"role": "system" if self.role == "developer" else self.role, "content": self._text(where)}
        if assistant and (reasoning := self.reasoning_content or self.reasoning):
            known["reasoning_content"] = reasoning
        if self.tool_calls:
            known["tool_calls"] = [call.templated(f"{where}.tool_calls.{i}") for i, call in enumerate(self.tool_calls)]
        if tool:
            if self.tool_call_id is None:
                raise InvalidRequest(
                    "a message of the role 'tool' needs the tool_call_id of the call that it answers", f"{where}.tool_call_id"
                )
            known["tool_call_id"] = self.tool_call_id
        return known

    def _text(self, where: str) -> str:
        if isinstance(self.content, str):
            return self.content
        said = ""
        for at, part in enumerate(self.content or ()):
            here = f"{where}.content.{at}"
            if part.type == "refusal" and self.role != "assistant":
                raise InvalidRequest("only an assistant message may hold a refusal", f"{here}.type")
            text, other = (part.text, part.refusal) if part.type == "text" else (part.refusal, part.text)
            if text is None or other is not None:
                raise InvalidRequest(f"a part of type '{part.type}' must have '{part.type}' and nothing else", here)
            said += text
        return said + (self.refusal or "" if self.content is None else "")


class Function(Wire):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    cache_control: Any = None

    def asked(self, where: str) -> conversation.RequestedFunction:
        return conversation.RequestedFunction(self.name, self.description, self.parameters, bool(self.strict), where)


class Tool(Wire):
    type: Literal["function"]
    function: Function
    cache_control: Any = None

    def asked(self, where: str) -> conversation.RequestedFunction:
        return self.function.asked(f"{where}.function")


class Grammar(Wire):
    syntax: Syntax
    definition: str


class CustomFormat(Wire):
    type: Literal["text", "grammar"]
    grammar: Grammar | None = None


class Custom(Wire):
    name: str
    description: str | None = None
    format: CustomFormat | None = None


class CustomTool(Wire):
    type: Literal["custom"]
    custom: Custom
    cache_control: Any = None

    def asked(self, where: str) -> conversation.RequestedFunction:
        """Raises InvalidRequest."""
        format = self.custom.format or CustomFormat(type="text")
        if (format.type == "grammar") != (format.grammar is not None):
            raise InvalidRequest(
                "a format must have a grammar if its type is 'grammar', and no grammar otherwise", f"{where}.custom.format"
            )
        grammar = None if format.grammar is None else (format.grammar.syntax, format.grammar.definition)
        return custom_function(self.custom.name, self.custom.description, grammar, f"{where}.custom")


AnyTool = Annotated[Annotated[Tool, Tag("[function]")] | Annotated[CustomTool, Tag("[custom]")], Discriminator(kind_of)]


class Named(Wire):
    name: str


class NamedChoice(Wire):
    type: Literal["function"]
    function: Named


class CustomChoice(Wire):
    type: Literal["custom"]
    custom: Named


class AllowedTools(Wire):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedChoice | CustomChoice], Field(min_length=1, max_length=MAX_TOOLS)]


class AllowedChoice(Wire):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


class Schema(Wire):
    name: str
    description: str | None = None
    definition: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(Wire):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: Schema | None = None

    def answer(self) -> JsonAnswer | None:
        """None: any text. Raises InvalidRequest."""
        schema = self.json_schema
        if (self.type == "json_schema") != (schema is not None):
            raise InvalidRequest(
                "response_format must have a json_schema if its type is 'json_schema', and none otherwise", "response_format"
            )
        if schema is not None:
            check_name(schema.name, "response_format.json_schema.name")
        elif self.type == "text":
            return None
        return JsonAnswer(schema and schema.definition, bool(schema and schema.strict), "response_format")


class ChatRequest(SampledBody):
    inert: ClassVar[dict[str, tuple[Any, ...]]] = {
        "functions": (None, []),
        "function_call": (None, "none"),
        "modalities": (None, ["text"]),
        "audio": (None,),
        "prediction": (None,),
        "verbosity": (None, "medium"),
        "web_search_options": (None,),
        "moderation": (None,),
    }
    instead: ClassVar[dict[str, str]] = {"functions": "tools", "function_call": "tool_choice"}

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    tools: list[AnyTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | CustomChoice | AllowedChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    store: bool | None = None
    metadata: Metadata | None = None

    def templated(self) -> list[conversation.Message]:
        """Raises InvalidRequest."""
        return [message.templated(f"messages.{i}") for i, message in enumerate(self.messages)]

    def asked_tools(self) -> Tools:
        """Raises InvalidRequest."""
        functions = [tool.asked(f"tools.{i}") for i, tool in enumerate(self.tools or ())]
        parallel = self.parallel_tool_calls is not False
        match self.tool_choice:
            case NamedChoice(function=named) | CustomChoice(custom=named):
                return Tools(functions, must=True, allowed=[named.name], parallel=False)
            case AllowedChoice(allowed_tools=allowed):
                names = [(c.function if isinstance(c, NamedChoice) else c.custom).name for c in allowed.tools]
                return Tools(functions, must=allowed.mode == "required", allowed=names, parallel=parallel)
            case choice:
                return Tools(functions, may=choice != "none", must=choice == "required", parallel=parallel)
