"""Grammars of whole answers: the model's reasoning first, and then text, JSON of a schema, or tool calls in the model's format.

Parts of a format that are tokens of the model are given by their ids: llguidance recognises no other spelling of them, and
models know them so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from llguidance import LLMatcher

from shoal.errors import InvalidRequest
from shoal.text import harmony, loose
from shoal.text.answer_format import AnswerFormat
from shoal.text.arguments import Kind
from shoal.text.grammar import END, SPACE, checked, held
from shoal.text.schema import localised
from shoal.text.tools import ID, Tags, ToolFormat, ToolFunction

MAX_TOOLS = 128
_ANYTHING = "/(?s:.*)/"
_BEFORE_INPUT, _BEHIND_INPUT = json.dumps('{"input": "'), json.dumps('"}')
_GAP = r"/[ \t\r\n]{1,4}/"


@dataclass(frozen=True)
class JsonSchema:
    """The answer must be JSON of this schema. where: the field that says so."""

    schema: Mapping[str, Any]
    strict: bool = False
    where: str = "response_format"


def answer_grammar(
    format: AnswerFormat,
    tools: Sequence[ToolFunction] = (),
    choice: str = "auto",
    parallel: bool = True,
    marks: Mapping[str, int] | None = None,
    answer: JsonSchema | None = None,
) -> str:
    """An answer that is text, or JSON, or calls of tools with arguments of their schemas.

    tools:  as `held_tools` makes them.
    choice: 'auto' (text, or calls possibly after some text), 'required' (only calls), or a tool's name (a call of it).
    marks:  tokens of the model that are given by their ids, by name.
    answer: replaces any text. With tools, it is not supported in formats whose calls have no trigger.

    Raises InvalidRequest.
    """
    wanted, must = _wanted(tools, choice, answer is None), choice != "auto"
    several = parallel and choice in ("auto", "required")
    asked = "" if answer is None or must else _guided(held(answer.schema, answer.strict, answer.where), answer.strict)
    ids = {text: id for text, id in (marks or {}).items() if text and any(text in part for part in format.written)}
    trial = _Rules(format, dict.fromkeys(ids, END)).grammar(wanted, must, several, asked)
    checked(trial, "tools" if tools else answer.where if answer is not None else None)
    return _Rules(format, ids).grammar(wanted, must, several, asked) if ids else trial


def held_tools(tools: Sequence[ToolFunction]) -> list[ToolFunction]:
    """The same tools, with the parts of their schemas that can be enforced. Raises InvalidRequest."""
    return [replace(tool, parameters=_held(tool)) for tool in tools]


def kinds(tools: Sequence[ToolFunction]) -> dict[str, dict[str, Kind]]:
    """How to read the arguments of tools that are in tags. tools: as `held_tools` makes them."""
    return {
        tool.name: {name: kind for name, part, _ in _properties(tool.parameters) if (kind := _kind(part)) is not None} for tool in tools
    }


def _wanted(tools: Sequence[ToolFunction], choice: str, needed: bool) -> list[ToolFunction]:
    if len(tools) > MAX_TOOLS or (needed and not tools):
        raise InvalidRequest(f"there must be 1 to {MAX_TOOLS} tools, not {len(tools)}", "tools")
    wanted = list(tools) if choice in ("auto", "required") else [tool for tool in tools if tool.name == choice]
    if tools and not wanted:
        raise InvalidRequest(
            f"tool_choice names '{choice}', which is not one of the tools: {', '.join(t.name for t in tools)}", "tool_choice"
        )
    return wanted


def _held(tool: ToolFunction) -> Mapping[str, Any]:
    try:
        return held({"type": "object", **tool.parameters}, tool.strict, "tools")
    except InvalidRequest as error:
        raise InvalidRequest(f"the parameters of tool '{tool.name}': {error}", "tools") from error


def _properties(parameters: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], bool]]:
    """Each property with the definitions that it may refer to, what it refers to itself, and whether it is required."""
    local = localised(parameters)
    definitions: dict[str, Any] = local.get("$defs", {})

    def led(part: Any) -> Mapping[str, Any]:
        """The target, if it is a reference."""
        whole = _mapping(part)
        for _ in definitions:  # one may lead to the next
            if isinstance(to := whole.get("$ref"), str):
                whole = _mapping(definitions.get(to.removeprefix("#/$defs/")))
        return {**whole, "$defs": definitions} if definitions else whole

    root = led(local)
    required: list[str] = root.get("required") or []
    return [(name, led(part), name in required) for name, part in _mapping(root.get("properties")).items() if part is not False]


def _mapping(schema: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", schema) if isinstance(schema, Mapping) else {}


def _values(schema: Mapping[str, Any]) -> list[Any] | None:
    """All allowed values, if the schema lists them."""
    if isinstance(values := schema.get("enum"), list):
        return cast("list[Any]", values)
    if "const" in schema:
        return [schema["const"]]
    ways = [_values(_mapping(way)) for way in cast("list[Any]", schema.get("anyOf") or schema.get("oneOf") or ())]
    known = [way for way in ways if way is not None]
    return [value for way in known for value in way] if known and len(known) == len(ways) else None


def _kind(schema: Mapping[str, Any]) -> Kind | None:
    """The kind of value; None: JSON."""
    types: set[Any] = set()
    for part in cast("list[Any]", schema.get("anyOf") or schema.get("oneOf") or [schema]):
        inside = _mapping(part)
        if (values := _values(inside)) is not None:
            types |= {"string" if isinstance(value, str) else "null" if value is None else "other" for value in values}
        else:
            kind = inside.get("type", "other")
            types |= set(cast("list[Any]", kind)) if isinstance(kind, list) else {kind}
    return "text" if types == {"string"} else "text or null" if types == {"string", "null"} else None


class _Rules:
    """A grammar in Lark, rule by rule. marks: tokens that are given by their ids."""

    def __init__(self, format: AnswerFormat, marks: Mapping[str, int]) -> None:
        self._format, self._marks = format, marks
        self._split = re.compile("(" + "|".join(map(re.escape, sorted(marks, key=len, reverse=True))) + ")") if marks else None
        self._rules = {"ANYTHING": _ANYTHING, "GAP": _GAP}

    def grammar(self, tools: Sequence[ToolFunction], must: bool, several: bool, json: str) -> str:
        """json: what llguidance should make of a JSON answer; empty: the answer may be text, or must be a call."""
        if json:
            self._add("json", f"%json {json}")
        build = self._channels if self._format.reasoning is not None and self._format.reasoning.channels else self._start
        self._add("start", " | ".join(build(tools, must, several, bool(json))))
        return LLMatcher.grammar_from_lark("\n".join(f"{name}: {body}" for name, body in reversed(self._rules.items())))

    def _add(self, name: str, body: str) -> str:
        self._rules[name] = body
        return name

    def _spelled(self, text: str) -> str:
        """A text in Lark's notation."""
        pieces = self._split.split(text) if self._split is not None else [text]
        return " ".join(f"<[{self._marks[piece]}]>" if piece in self._marks else json.dumps(piece) for piece in pieces if piece)

    def _upto(self, end: str, name: str) -> str:
        """Any text up to and including the first `end`."""
        if (first := self._spelled(end)).startswith("<["):
            return f"ANYTHING {first}"
        self._add(name.upper(), f"ANYTHING {first}")
        return self._add(f"{name}[lazy]", name.upper()).removesuffix("[lazy]")

    def _start(self, tools: Sequence[ToolFunction], must: bool, several: bool, as_json: bool) -> list[str]:
        format, reasoning = self._format.calls, self._format.reasoning
        text, opened = "ANYTHING", self._format.opened
        if reasoning is not None and not opened and not (begin := self._spelled(reasoning.begin)).startswith("<["):
            text = self._add("TEXT", rf"ANYTHING & ~(/\s*/ {begin} ANYTHING)")
        ways = ["json"] if as_json and not must else []
        if format is not None and tools:
            before = f"({self._spelled(format.before)})? " if format.before in self._marks else ""
            tail = self._add("tail", self._tail(format, tools, several))
            calls = self._add("calls", f"{before}{self._spelled(format.trigger)} {tail}")
            if self._format.names and format.named:
                text = self._add("SAID", f"{text} & ~(/\\s*({'|'.join(map(re.escape, self._format.names))})\\n\\{{/ ANYTHING)")
            elif self._format.names and not must:
                ways += self._loose(tools)
                text = self._add("SAID", f"{text} & ~(/{loose.called(self._format.names)}/ ANYTHING)")
            ways += self._with_text(format, text, calls) if not must and not as_json else [calls]
        if reasoning is None:
            return ways
        begin = "" if opened else f"GAP? {self._spelled(reasoning.begin)} "
        thought = self._add("thought", begin + self._upto(reasoning.end, "thinking"))
        body = self._add("body", " | ".join(ways))
        if reasoning.before in self._marks and not must:
            body = self._add("enclosed", f"{body} | {self._spelled(reasoning.before)} {body} ({self._spelled(reasoning.after)})?")
        return [f"{thought} GAP? {body}", *([] if opened else [body])]

    def _loose(self, tools: Sequence[ToolFunction]) -> list[str]:
        """Calls without their format's marker."""
        self._add("END", f"/{loose.TAIL}/")
        for i, tool in enumerate(tools):
            self._add(f"NAMED_{i}", f"/{loose.head(tool.name)}/")
            self._add(f"loose_{i}", f"NAMED_{i} {self._arguments(tool, i)} END")
        return [f"loose_{i}" for i in range(len(tools))]

    def _with_text(self, format: ToolFormat, text: str, calls: str) -> list[str]:
        """Text, or calls after some text. Whatever begins like a call is one."""
        if format.named:
            return [text, calls]
        if not format.trigger:
            self._add("OTHER", r"/(\s*[^\s{](?s:.*))?/" + ("" if text == "ANYTHING" else f" & {text}"))
            return ["OTHER", calls]
        if format.trigger in self._marks:
            return [text, f"{text} {calls}"]
        self._add("HEAD", f"{text} {json.dumps(format.trigger)}")
        self._add("head[lazy]", "HEAD")
        return [text, "head tail"]

    def _tail(self, format: ToolFormat, tools: Sequence[ToolFunction], several: bool) -> str:
        """Calls without their trigger."""
        each = [self._call(format, tool, i) for i, tool in enumerate(tools)]
        call = self._add("call", " | ".join(each))
        more = f"({self._part(format, format.separator + format.begin)} {call})*" if several and format.separator is not None else ""
        opening = (format.opening + format.begin).removeprefix(format.trigger)
        return " ".join(filter(None, (self._part(format, opening), call, more, self._spelled(format.closing))))

    def _call(self, format: ToolFormat, tool: ToolFunction, number: int) -> str:
        """A call from its name on."""
        name = json.dumps(json.dumps(tool.name, ensure_ascii=False)[1:-1])
        given = self._arguments(tool, number) if format.tags is None else self._tagged(format.tags, tool, number)
        middle = self._part(format, format.middle)
        if format.named:  # one lexeme, which ends where that of other text does
            name, middle = json.dumps(tool.name + format.middle), ""
        return self._add(f"call_{number}", " ".join(filter(None, (name, middle, given, self._spelled(format.end)))))

    def _part(self, format: ToolFormat, text: str) -> str:
        """A part of a format, which may contain the id of a call."""
        return f" /{format.id}/ ".join(self._spelled(part) for part in text.split(ID))

    def _arguments(self, tool: ToolFunction, number: int) -> str:
        """Arguments as JSON."""
        if not tool.input:
            return f"%json {_guided(tool.parameters, tool.strict)}"
        inside = self._add(f"input_{number}", f"%lark {{\n{tool.input}\n}}")
        return f"{_BEFORE_INPUT} {inside} {_BEHIND_INPUT}"

    def _tagged(self, tags: Tags, tool: ToolFunction, number: int) -> str:
        """Arguments one by one, in the order of the schema."""
        if tool.input:
            raise InvalidRequest(
                f"this model writes arguments without quotes, where the grammar of tool '{tool.name}' cannot be held to; leave the grammar out",
                "tools",
            )
        out: list[str] = []
        for at, (name, part, needed) in enumerate(_properties(tool.parameters)):
            rule = f"value_{number}_{at}"
            if (kind := _kind(part)) is None:
                value = f"%json {_guided(part, tool.strict)} {self._spelled(tags.end)}"
            else:
                value = self._text(part, tags.end, rule, f"the parameters of tool '{tool.name}': {name}" if tool.strict else "")
                value = f'({value} | "null" {self._spelled(tags.end)})' if kind == "text or null" else value
            argument = self._add(f"argument_{number}_{at}", f"{self._spelled(tags.begin + name + tags.middle)} {value}")
            out.append(argument if needed else f"{argument}?")
        return " ".join(out)

    def _text(self, schema: Mapping[str, Any], end: str, rule: str, strict: str) -> str:
        """A string without quotes or escapes. strict: its name in errors, if everything that its schema requires must hold."""
        if (values := _values(schema)) is not None:
            said = [f"{self._spelled(value)} {self._spelled(end)}".strip() for value in values if isinstance(value, str)]
            return f"({' | '.join(said)})"
        known = ("type", "description", "title", "default", "examples", "$defs")
        if strict and (more := [key for key in schema if key not in known]):
            raise InvalidRequest(
                f"{strict}.{more[0]}: this model writes strings as they stand, which can only be any, or of an enum", "tools"
            )
        return self._upto(end, rule)

    def _channels(self, tools: Sequence[ToolFunction], must: bool, several: bool, as_json: bool) -> list[str]:
        """As described in harmony.py. At most one call: the model ends after it."""
        channel, message = self._spelled(harmony.CHANNEL), self._spelled(harmony.MESSAGE)
        again = self._upto(f"{harmony.END}{harmony.START}assistant", "again")
        thought = self._add("thought", f'{channel} "analysis" {message} {again}')
        said = self._add("said", f'{channel} "commentary" {message} {again}')
        typed = self._add("typed", f'(" " ({self._spelled(harmony.CONSTRAIN)})? "json")?')
        ways: list[str] = []
        if not must:
            ways.append(f'{channel} "final" typed {message} json' if as_json else f'{channel} "final" {message} ANYTHING')
        for i, tool in enumerate(tools):
            arguments = self._add(f"arguments_{i}", self._arguments(tool, i))
            to = json.dumps(f" to=functions.{tool.name}")
            ways.append(f'{channel} ("commentary" | "analysis") {to} {typed} {message} {arguments}')
            ways.append(f'{to} {channel} "commentary" {typed} {message} {arguments}')
        body = self._add("body", " | ".join(ways))
        return [f"{thought}* {f'{said}? ' if tools and not must else ''}{body}"]


def _guided(schema: Mapping[str, Any], strict: bool) -> str:
    return json.dumps({**schema, "x-guidance": {"whitespace_pattern": SPACE, "lenient": not strict}}, ensure_ascii=False)
