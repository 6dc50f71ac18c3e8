"""What a conversation asks of the model, whichever endpoint it came through: messages, tools, and what the answer has to be."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, cast

from shoal.errors import InvalidRequest
from shoal.gateway.engine import Engine
from shoal.text import grammar
from shoal.text.tokenizer import Tokenizer
from shoal.text.tools import Tool, ToolFormat

MAX_MESSAGES = 2048
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

Message = dict[str, Any]
"""As chat templates know messages: `role`, `content`, and where there are any `tool_calls`, `tool_call_id`, `name`, `reasoning_content`. A
call's `arguments` are an object."""


@dataclass(frozen=True)
class Function:
    """A function that the model may call. where: the field of the body that says so."""

    name: str
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool
    where: str
    custom: bool = False
    """Whether it is called with text: that is its argument `input` then."""
    input: str = ""
    """Lark of that text inside of JSON; empty: any."""

    def check(self) -> None:
        """Raises InvalidRequest."""
        check_name(self.name, f"{self.where}.name")
        if (self.parameters or {}).get("type", "object") != "object":
            raise InvalidRequest("a function's parameters are an object: 'type' must be 'object'", f"{self.where}.parameters")

    @property
    def tool(self) -> Tool:
        return Tool(self.name, self.parameters or {}, self.strict, self.input)

    @property
    def told(self) -> dict[str, Any]:
        """As chat templates know tools."""
        about = {} if self.description is None else {"description": self.description}
        parameters: dict[str, Any] = {"type": "object", "properties": {}, **(self.parameters or {})}
        return {"type": "function", "function": {"name": self.name, **about, "parameters": parameters}}


@dataclass(frozen=True)
class Tools:
    """Functions, and which of them may or must be called. allowed: by name; None: all."""

    functions: Sequence[Function]
    may: bool = True
    must: bool = False
    allowed: Sequence[str] | None = None
    parallel: bool = True

    def check(self) -> None:
        """Raises InvalidRequest."""
        if len(self.functions) > grammar.MAX_TOOLS:
            raise InvalidRequest(f"at most {grammar.MAX_TOOLS} tools are possible, not {len(self.functions)}", "tools")
        names: set[str] = set()
        for function in self.functions:
            function.check()
            if function.name in names:
                raise InvalidRequest(f"two tools are called '{function.name}'", f"{function.where}.name")
            names.add(function.name)
        if self.must and not names:
            raise InvalidRequest("tool_choice asks for a call, but there are no tools", "tool_choice")
        for name in self.allowed or ():
            if name not in names:
                raise InvalidRequest(f"tool_choice names '{name[:64]}', which is none of the tools", "tool_choice")

    @property
    def custom(self) -> tuple[str, ...]:
        """Names of those that are called with text."""
        return tuple(f.name for f in self.functions if f.custom)

    @property
    def callable(self) -> list[Tool]:
        return [f.tool for f in self.functions if self.may and (self.allowed is None or f.name in self.allowed)]


@dataclass(frozen=True)
class JsonAnswer:
    """The answer has to be JSON. schema: None: any object. where: the field of the body that says so."""

    schema: Mapping[str, Any] | None
    strict: bool
    where: str

    @property
    def grammar(self) -> str:
        """Raises InvalidRequest."""
        if self.schema is None:
            return grammar.json_object(self.where)
        return grammar.json_schema(self.schema, self.strict, self.where)


@dataclass(frozen=True)
class Conversation:
    """What the engine is asked, and how its answer is to be read."""

    prompt: list[int]
    grammar: str = ""
    format: ToolFormat | None = None
    """None: there are no calls to look for."""
    markers: tuple[int, ...] = ()
    """Special tokens of that format, which have to be seen."""


def converse(
    engine: Engine, messages: Sequence[Message], tools: Tools, answer: JsonAnswer | None, variables: Mapping[str, Any] | None = None
) -> Conversation:
    """variables: what the template is told beside the conversation. Raises InvalidRequest, NotReady."""
    tokenizer = engine.tokenizer
    prompt = prompt_tokens(engine, rendered(tokenizer, messages, tools, variables=variables))
    format = tokenizer.tool_format
    said = "" if answer is None else answer.grammar
    if format is None or not tools.callable:
        return Conversation(prompt, said)
    if answer is not None and not tools.must and not format.trigger:
        raise InvalidRequest("this model's calls are JSON and nothing else; ask for tools or for an answer in JSON", answer.where)
    special = tokenizer.special
    schema = None if answer is None else {"type": "object"} if answer.schema is None else answer.schema
    functions = [asdict(tool) for tool in tools.callable]
    asked = json.dumps([functions, "required" if tools.must else "auto", tools.parallel, schema])
    calls = _calls(format, special.get(format.trigger), asked)
    written = (format.opening, format.begin, format.end, format.separator or "", format.closing)
    markers = sorted(token for text, token in special.items() if text and any(text in part for part in written))
    return Conversation(prompt, calls, format, tuple(markers))


def rendered(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: Tools, answer: bool = True, variables: Mapping[str, Any] | None = None
) -> str:
    """The text that the model reads. answer: up to where its answer begins. Raises InvalidRequest."""
    tools.check()
    format = tokenizer.tool_format
    if format is None and tools.functions:
        raise InvalidRequest(
            "this model's chat template has no tools, or in a format that is not known; serve it with --chat-template and one that has",
            "tools",
            "unsupported_parameter",
        )
    return tokenizer.render_chat(_linked(messages, format), [f.told for f in tools.functions if tools.may], answer, variables)


@lru_cache(maxsize=32)
def _calls(format: ToolFormat, marker: int | None, asked: str) -> str:
    """An agent asks with the same tools again and again, and a grammar takes milliseconds for each of them."""
    functions, choice, parallel, schema = json.loads(asked)
    tools = [Tool(**function) for function in functions]
    return grammar.tool_calls(format, tools, choice, parallel, {} if marker is None else {format.trigger: marker}, schema)


def prompt_tokens(engine: Engine, text: str, param: str = "messages") -> list[int]:
    """A rendered prompt's tokens; one that is far too long is refused before all of it is tokenised. Raises InvalidRequest, NotReady."""
    longest = engine.longest()
    tokens = None if engine.tokenizer.exceeds(text, longest) else engine.tokenizer.encode(text, bos=False)
    if tokens is None or len(tokens) >= longest:
        length = f"more than {longest}" if tokens is None else str(len(tokens))
        raise InvalidRequest(
            f"the prompt has {length} tokens; with one more for an answer at most {longest} fit", param, "context_length_exceeded"
        )
    return tokens


def check_name(name: str, param: str) -> None:
    """Raises InvalidRequest."""
    if _NAME.fullmatch(name) is None:
        raise InvalidRequest("a name has 1 to 64 letters, digits, underscores and dashes", param)


def call_id(answer: str, choice: int, call: int) -> str:
    """The same whenever the answer is read."""
    return "call_" + hashlib.sha256(f"{answer}/{choice}/{call}".encode()).hexdigest()[:24]


def _linked(messages: Sequence[Message], format: ToolFormat | None) -> list[Message]:
    """Each result with the name of the function that was called. Ids become as short as Mistral's templates want them. Raises InvalidRequest."""
    called: dict[str, str] = {}
    out: list[Message] = []
    for at, message in enumerate(messages):
        known = message
        if calls := cast("list[dict[str, Any]]", message.get("tool_calls") or []):
            called |= {call["id"]: call["function"]["name"] for call in calls}
            known = {**message, "tool_calls": [{**call, "id": _short(call["id"])} for call in calls]}
        elif message["role"] == "tool":
            id = str(message["tool_call_id"])
            if id not in called:
                raise InvalidRequest(f"no tool call before this message has the id '{id[:64]}'", f"messages.{at}.tool_call_id")
            known = {**message, "tool_call_id": _short(id), "name": called[id]}
        if known is not message and format is None:
            raise InvalidRequest("this model's chat template has no tools, or in a format that is not known", f"messages.{at}")
        out.append(known)
    return out


def _short(id: str) -> str:
    return hashlib.sha256(id.encode()).hexdigest()[:9]
