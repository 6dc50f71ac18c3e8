"""What a conversation asks of the model, whichever endpoint it came through: messages, tools, and the form of the answer."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, cast

import msgspec

from shoal.errors import InvalidRequest
from shoal.gateway.engine import ChatTokenizer, Engine
from shoal.text import grammar
from shoal.text.answer_format import AnswerFormat
from shoal.text.answer_grammar import MAX_TOOLS, JsonSchema, answer_grammar, held_tools, kinds
from shoal.text.arguments import Kinds
from shoal.text.tools import ID, NAME, ToolFormat, ToolFunction

MAX_MESSAGES = 2048
_GOES_ON = "goes_on"
"""Marks an incomplete message; see `gone_on`."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

Message = dict[str, Any]
"""A message in the form of chat templates: `role`, `content`, and, if there are any, `tool_calls`, `tool_call_id`, `name`,
`reasoning_content`. A call's `arguments` are an object."""


@dataclass(frozen=True)
class RequestedFunction:
    """A function that the model may call. where: the field of the body that defines it."""

    name: str
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool
    where: str
    custom: bool = False
    """Whether it is called with text, which is then its argument `input`."""
    input: str = ""
    """Lark grammar of that text inside JSON; empty: any text."""

    def check(self) -> None:
        """Raises InvalidRequest."""
        check_name(self.name, f"{self.where}.name")
        if (self.parameters or {}).get("type", "object") != "object":
            raise InvalidRequest("a function's parameters must be an object: 'type' must be 'object'", f"{self.where}.parameters")

    @property
    def tool(self) -> ToolFunction:
        return ToolFunction(self.name, self.parameters or {}, self.strict, self.input)

    @property
    def told(self) -> dict[str, Any]:
        """In the form of chat templates."""
        about = {} if self.description is None else {"description": self.description}
        parameters: dict[str, Any] = {"type": "object", "properties": {}, **(self.parameters or {})}
        return {"type": "function", "function": {"name": self.name, **about, "parameters": parameters}}


@dataclass(frozen=True)
class Tools:
    """Functions, and which of them may or must be called. allowed: their names; None: all."""

    functions: Sequence[RequestedFunction]
    may: bool = True
    must: bool = False
    allowed: Sequence[str] | None = None
    parallel: bool = True

    def check(self) -> None:
        """Raises InvalidRequest."""
        if len(self.functions) > MAX_TOOLS:
            raise InvalidRequest(f"at most {MAX_TOOLS} tools are allowed, not {len(self.functions)}", "tools")
        names: set[str] = set()
        for function in self.functions:
            function.check()
            if function.name in names:
                raise InvalidRequest(f"two tools are named '{function.name}'", f"{function.where}.name")
            names.add(function.name)
        if self.must and not names:
            raise InvalidRequest("tool_choice asks for a call, but there are no tools", "tool_choice")
        for name in self.allowed or ():
            if name not in names:
                raise InvalidRequest(f"tool_choice names '{name[:64]}', which is not one of the tools", "tool_choice")

    @property
    def custom(self) -> tuple[str, ...]:
        """Names of the tools that are called with text."""
        return tuple(f.name for f in self.functions if f.custom)

    @property
    def callable(self) -> list[ToolFunction]:
        return [f.tool for f in self.functions if self.may and (self.allowed is None or f.name in self.allowed)]


@dataclass(frozen=True)
class JsonAnswer:
    """The answer must be JSON. schema: None: any object. where: the field of the body that says so."""

    schema: Mapping[str, Any] | None
    strict: bool
    where: str

    @property
    def json(self) -> JsonSchema:
        return JsonSchema({"type": "object"} if self.schema is None else self.schema, self.strict, self.where)

    @property
    def grammar(self) -> str:
        """Raises InvalidRequest."""
        if self.schema is None:
            return grammar.json_object(self.where)
        return grammar.json_schema(self.schema, self.strict, self.where)


@dataclass(frozen=True)
class Conversation:
    """What the engine is asked, and how to read its answer."""

    prompt: list[int]
    grammar: str = ""
    format: AnswerFormat | None = None
    """None: everything is content."""
    markers: tuple[int, ...] = ()
    """Special tokens of that format, which the reader must see."""


def converse(
    engine: Engine, messages: Sequence[Message], tools: Tools, answer: JsonAnswer | None, variables: Mapping[str, Any] | None = None
) -> Conversation:
    """variables: given to the template besides the conversation. Raises InvalidRequest, NotReady."""
    tokenizer = engine.tokenizer
    text = rendered(tokenizer, messages, tools, variables=variables)
    prompt = prompt_tokens(engine, text)
    reasoning = tokenizer.reasoning_format
    format = tokenizer.tool_format
    opened = reasoning is not None and reasoning.opened(text)
    if format is None or not tools.callable:
        if reasoning is None:
            return Conversation(prompt, "" if answer is None else answer.grammar)
        made = AnswerFormat(None, reasoning, opened)
        held = "" if answer is None else _held(_asked(tokenizer, made, answer=answer))[0]
        return Conversation(prompt, held, made, _markers(tokenizer, made))
    if answer is not None and not tools.must and not format.trigger:
        raise InvalidRequest("this model puts nothing around its calls; ask either for tools or for an answer in JSON", answer.where)
    names = tuple(tool.name for tool in tools.callable) if format.named or (format.loose and answer is None) else ()
    made = AnswerFormat(format, reasoning, opened, names=names)
    held, read = _held(_asked(tokenizer, made, tools, answer))
    made = replace(made, kinds=read)
    return Conversation(prompt, held, made, _markers(tokenizer, made))


def _markers(tokenizer: ChatTokenizer, format: AnswerFormat) -> tuple[int, ...]:
    """Special tokens that must be visible to read an answer."""
    return tuple(sorted(id for text, id in tokenizer.special.items() if text and any(text in part for part in format.written)))


def _asked(tokenizer: ChatTokenizer, format: AnswerFormat, tools: Tools | None = None, answer: JsonAnswer | None = None) -> str:
    """Everything that a grammar depends on, as a cache key."""
    marks = {text: id for text, id in tokenizer.marks.items() if any(text in part for part in format.written)}
    functions = [] if tools is None else [asdict(tool) for tool in tools.callable]
    choice, parallel = "required" if tools is not None and tools.must else "auto", tools is None or tools.parallel
    return json.dumps([asdict(format), marks, functions, choice, parallel, answer and asdict(answer.json)])


@lru_cache(maxsize=32)
def _held(asked: str) -> tuple[str, Kinds]:
    """The grammar, and how to read arguments. Cached: an agent sends the same tools again and again, and each of them takes
    milliseconds."""
    told, marks, functions, choice, parallel, answer = json.loads(asked)
    format, schema = msgspec.convert(told, AnswerFormat), None if answer is None else JsonSchema(**answer)
    tools = held_tools([ToolFunction(**function) for function in functions])
    read = kinds(tools) if format.calls is not None and format.calls.tags is not None else {}
    return answer_grammar(format, tools, choice, parallel, marks, schema), read


def rendered(
    tokenizer: ChatTokenizer, messages: Sequence[Message], tools: Tools, answer: bool = True, variables: Mapping[str, Any] | None = None
) -> str:
    """The text that the model reads, for `encode_marked`. answer: whether it includes the opening of the answer. Raises
    InvalidRequest."""
    if messages and messages[-1].get(_GOES_ON):
        return _going_on(tokenizer, rendered(tokenizer, messages[:-1], tools, variables=variables), messages[-1])
    tools.check()
    format = tokenizer.tool_format
    if format is None and tools.functions:
        raise InvalidRequest(
            "this model's chat template has no tools, or writes them in an unknown format; serve it with --chat-template and one that has",
            "tools",
            "unsupported_parameter",
        )
    return tokenizer.render_chat(_linked(messages, format), [f.told for f in tools.functions if tools.may], answer, variables)


def _going_on(tokenizer: ChatTokenizer, text: str, message: Message) -> str:
    """A rendered text followed by the text that the answer continues. If the template opens a thought, the thought is closed first."""
    format = tokenizer.reasoning_format
    if format is not None and format.opened(text):
        text += tokenizer.marked(message.get("reasoning_content", "")) + f"\n{format.end}\n\n"
    return text + tokenizer.marked(str(message["content"]))


def prompt_tokens(engine: Engine, text: str, param: str = "messages") -> list[int]:
    """A rendered prompt's tokens. A prompt that is far too long is refused before all of it is tokenised. Raises
    InvalidRequest, NotReady."""
    longest = engine.longest()
    tokens = None if engine.tokenizer.exceeds(text, longest) else engine.tokenizer.encode_marked(text)
    if tokens is None or len(tokens) >= longest:
        length = f"more than {longest}" if tokens is None else str(len(tokens))
        raise InvalidRequest(
            f"the prompt has {length} tokens; with one more for an answer at most {longest} fit", param, "context_length_exceeded"
        )
    return tokens


@contextmanager
def blamed(field: str) -> Generator[None]:
    """Blames this field for errors in the template's messages, which are not the client's own or not in the same places."""
    try:
        yield
    except InvalidRequest as error:
        if (error.param or "").startswith("messages"):
            raise InvalidRequest(str(error), field, error.code) from None
        raise


def check_name(name: str, param: str) -> None:
    """Raises InvalidRequest."""
    if _NAME.fullmatch(name) is None:
        raise InvalidRequest("a name has 1 to 64 letters, digits, underscores and dashes", param)


def call_arguments(text: str) -> dict[str, Any] | None:
    """The arguments in a call's text; None if it is not a JSON object."""
    try:
        arguments: Any = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", arguments) if isinstance(arguments, dict) else None


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def call_id(answer: str, choice: int, call: int) -> str:
    """The id of a call: the same whenever the answer is read."""
    return "call_" + hashlib.sha256(f"{answer}/{choice}/{call}".encode()).hexdigest()[:24]


def gone_on(messages: Sequence[Message]) -> Sequence[Message]:
    """The same messages, marked so that the answer continues the last one if it is the assistant's own text, as Anthropic and
    Ollama do."""
    if not messages or messages[-1]["role"] != "assistant" or messages[-1].get("tool_calls"):
        return messages
    return [*messages[:-1], {**messages[-1], _GOES_ON: True}]


def _linked(messages: Sequence[Message], format: ToolFormat | None) -> list[Message]:
    """Adds the name of the called function to each result. Gives calls the ids that the model's template wants: most take any,
    Mistral's requires nine characters. Raises InvalidRequest."""
    called: dict[str, tuple[str, str]] = {}
    out: list[Message] = []
    number = 0
    for at, message in enumerate(messages):
        known = message
        if calls := cast("list[dict[str, Any]]", message.get("tool_calls") or []):
            for call in calls:
                name = call["function"]["name"]
                wanted = format.ids.replace(NAME, name).replace(ID, str(number)) if format is not None else ""
                called[call["id"]] = name, wanted or _short(call["id"])
                number += 1
            known = {**message, "tool_calls": [_told(call, called[call["id"]][1]) for call in calls]}
        elif message["role"] == "tool":
            id = str(message["tool_call_id"])
            if id not in called:
                raise InvalidRequest(f"no tool call before this message has the id '{id[:64]}'", f"messages.{at}.tool_call_id")
            known = {**message, "tool_call_id": called[id][1], "name": called[id][0]}
        if known is not message and format is None:
            raise InvalidRequest("this model's chat template has no tools, or writes them in an unknown format", f"messages.{at}")
        out.append(known)
    return out


class _Arguments(dict[str, Any]):
    """An object for templates that expect one, and its JSON for templates that append it to a text, as DeepSeek's do."""

    def __str__(self) -> str:
        return json.dumps(self, ensure_ascii=False)

    def __radd__(self, before: str) -> str:
        return before + str(self)

    def __add__(self, after: str) -> str:
        return str(self) + after


def _told(call: dict[str, Any], id: str) -> dict[str, Any]:
    """A call in the form of chat templates."""
    function = call["function"]
    return {**call, "id": id, "function": {**function, "arguments": _Arguments(function["arguments"])}}


def _short(id: str) -> str:
    return hashlib.sha256(id.encode()).hexdigest()[:9]
