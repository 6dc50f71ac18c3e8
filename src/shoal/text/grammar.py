"""Grammars that an answer is held to, as llguidance writes them (JSON): what `SamplingParams.grammar` takes.

Making one checks it, too, by compiling it for a vocabulary of single bytes. That takes up to some 0.2 s for the largest: do it in a
thread. What a client may send is bounded in size, depth and repetition here, and in work by llguidance's own limits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, cast

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from shoal.errors import InvalidRequest
from shoal.request import GRAMMAR_FUEL, GRAMMAR_ITEMS, GRAMMAR_SYMBOLS, MAX_GRAMMAR
from shoal.text.tools import Tool, ToolFormat

MAX_SCHEMA = 64 << 10  # bytes
MAX_DEPTH = 64  # of objects and lists in each other; a level of properties takes two
MAX_PROPERTIES = 1000
MAX_OPTIONAL = 400  # of one object
MAX_PATTERN = 4096  # characters
MAX_REPEATED = 20_000  # characters that a pattern has when its {n} are written out
MAX_TOOLS = 128

_SPACE = r"(?: |\r?\n[ \t]{0,24})"  # on one line or indented; a small model may otherwise go on with empty lines for ever
_ANYTHING = "(?s:.*)"
_END = 256  # the special token of the vocabulary on which grammars are tried
_COUNT = re.compile(r"\{(\d+)(?:(,)(\d*))?\}")
_ATOM = re.compile(r"\[\^?\]?(?:\\.|\[:\^?\w+:\]|[^\]\\])*\]|\\(?:[pPxuU]\{[^}]*\}|.)", re.DOTALL)  # a class, an escape


def json_object(param: str = "response_format") -> str:
    """Any JSON object."""
    return json_schema({"type": "object"}, param=param)


def json_schema(schema: Mapping[str, Any], strict: bool = True, param: str = "response_format") -> str:
    """JSON that a schema describes. Not strict: keywords that are not supported are left out of account.

    Raises InvalidRequest, with `param`, for a schema that is not one, is too large, or (strict) asks for what is not supported.
    """
    text = _schema(schema, param)
    return _checked(LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": _SPACE, "lenient": not strict}), param)


def regex(pattern: str, param: str = "response_format") -> str:
    """Text that a regular expression matches as a whole. Raises InvalidRequest."""
    _bounded(pattern, param)
    return _checked(LLMatcher.grammar_from_regex(pattern), param)


def lark(source: str, param: str = "response_format") -> str:
    """What a grammar in llguidance's variant of Lark describes; its rule `start` is where it begins. Raises InvalidRequest."""
    return _checked(LLMatcher.grammar_from_lark(source), param)


def tool_calls(
    format: ToolFormat,
    tools: Sequence[Tool],
    choice: str = "auto",
    parallel: bool = True,
    special: Mapping[str, int] | None = None,
    answer: Mapping[str, Any] | None = None,
) -> str:
    """Calls of tools with arguments of their schemas.

    choice: 'auto' (any text, or some and then calls), 'required' (calls and nothing else), or a tool's name (a call of it).
    special: the model's special tokens, with their ids: a format's trigger may be one of them.
    answer: a schema; with 'auto' there is then JSON of it in place of any text, or there are calls. Not for formats without a trigger.

    Raises InvalidRequest.
    """
    if not 0 < len(tools) <= MAX_TOOLS:
        raise InvalidRequest(f"there must be 1 to {MAX_TOOLS} tools, not {len(tools)}", "tools")
    wanted = list(tools) if choice in ("auto", "required") else [tool for tool in tools if tool.name == choice]
    if not wanted:
        raise InvalidRequest(f"tool_choice names '{choice}', which is none of the tools: {', '.join(t.name for t in tools)}", "tool_choice")
    for tool in wanted:
        try:
            json_schema(_parameters(tool), tool.strict, "tools")
        except InvalidRequest as error:
            raise InvalidRequest(f"the parameters of tool '{tool.name}': {error}", "tools") from error
    several = parallel and choice in ("auto", "required")
    marker = (special or {}).get(format.trigger)
    if marker is None:
        return _checked(_calls(format, wanted, choice == "auto", several, None, answer), "tools")
    _checked(_calls(format, wanted, choice == "auto", several, _END, answer), "tools")  # a special token stands for another
    return _calls(format, wanted, choice == "auto", several, marker, answer)


def _calls(
    format: ToolFormat, tools: Sequence[Tool], text: bool, several: bool, marker: int | None, answer: Mapping[str, Any] | None
) -> str:
    """marker: the trigger's id where it is a special token."""
    rules = [f"call: {' | '.join(f'call_{i}' for i in range(len(tools)))}"]
    for i, tool in enumerate(tools):
        head = f"{{{_json(format.name_key)}: {_json(tool.name)}, {_json(format.arguments_key)}: "
        if tool.input:
            frame = _literal(head + '{"input": "'), _literal('"}}' + format.end)
            rules += [f"input_{i}: %lark {{\n{tool.input}\n}}", f"call_{i}: {frame[0]} input_{i} {frame[1]}"]
            continue
        guidance = {"whitespace_pattern": _SPACE, "lenient": not tool.strict}
        schema = json.dumps({**_parameters(tool), "x-guidance": guidance})
        rules.append(f"call_{i}: {_literal(head)} %json {schema} {_literal('}' + format.end)}")
    more = f"({_literal(format.separator + format.begin)} call)*" if several and format.separator is not None else ""
    opening = (format.opening + format.begin).removeprefix(format.trigger)
    rules.append(f"calls: {_literal(opening)} call {more} {_literal(format.closing)}")
    trigger = f"<[{marker}]>" if marker is not None else _literal(format.trigger)
    if not text:
        rules.append(f"start: {trigger} calls")
    elif answer is not None:
        guidance = {"whitespace_pattern": _SPACE, "lenient": True}
        schema = json.dumps({**json.loads(_schema(answer, "response_format")), "x-guidance": guidance})
        rules += [f"answer: %json {schema}", f"start: answer | {trigger} calls"]
    elif not format.trigger:  # what begins like a call is one
        rules += [r"TEXT: /(\s*[^\s{]" + _ANYTHING + ")?/", "start: TEXT | calls"]
    elif marker is not None:
        rules += [f"TEXT: /{_ANYTHING}/", f"start: TEXT | TEXT {trigger} calls"]
    else:
        rules += [f"TEXT: /{_ANYTHING}/", f"HEAD: TEXT {trigger}", "head[lazy]: HEAD", "start: TEXT | head calls"]
    return LLMatcher.grammar_from_lark("\n".join(reversed(rules)))


def _parameters(tool: Tool) -> dict[str, Any]:
    return {"type": "object", **tool.parameters}


def _json(text: str) -> str:
    """As models write a string of JSON."""
    return json.dumps(text, ensure_ascii=False)


def _literal(text: str) -> str:
    """As Lark writes a string."""
    return json.dumps(text) if text else ""


def _schema(schema: Mapping[str, Any], param: str) -> str:
    """A schema within its bounds, as JSON."""
    properties = 0
    level: list[Any] = [schema]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, Mapping):
                inside = cast("Mapping[str, Any]", value)
                if "x-guidance" in inside:
                    raise InvalidRequest("the schema has 'x-guidance', which is not supported; leave it out", param)
                if (optional := _optional(inside)) > MAX_OPTIONAL:
                    raise InvalidRequest(f"an object has {optional} properties that may be left out; at most {MAX_OPTIONAL} may", param)
                for key, part in inside.items():
                    if key == "properties" and isinstance(part, Mapping):
                        properties += len(cast("Mapping[str, Any]", part))
                    elif key == "pattern" and isinstance(part, str):
                        _bounded(part, param)
                    elif key == "patternProperties" and isinstance(part, Mapping):
                        for pattern in cast("Mapping[str, Any]", part):
                            _bounded(pattern, param)
                below += inside.values()
            elif isinstance(value, list):
                below += cast("list[Any]", value)
        level = [value for value in below if isinstance(value, (Mapping, list))]
        if not level:
            break
    else:
        raise InvalidRequest(f"the schema is nested more than {MAX_DEPTH} levels deep", param)
    if properties > MAX_PROPERTIES:
        raise InvalidRequest(f"the schema has {properties} properties; at most {MAX_PROPERTIES} are supported", param)
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        size = len(text.encode())
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"the schema is not JSON: {error}", param) from error
    if size > MAX_SCHEMA:
        raise InvalidRequest(f"the schema has {size} bytes; at most {MAX_SCHEMA} are supported", param)
    return text


def _optional(schema: Mapping[str, Any]) -> int:
    """Properties that may be left out: each of them may follow each, which is what costs."""
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, Mapping):
        return 0
    return len(cast("Mapping[str, Any]", properties)) - (len(cast("list[Any]", required)) if isinstance(required, list) else 0)


def _bounded(pattern: str, param: str) -> None:
    if len(pattern) > MAX_PATTERN:
        raise InvalidRequest(f"a regular expression has {len(pattern)} characters; at most {MAX_PATTERN} are supported", param)
    if (size := repeated(pattern)) > MAX_REPEATED:
        raise InvalidRequest(f"a regular expression repeats to {size} characters; at most {MAX_REPEATED} are supported", param)


def repeated(pattern: str) -> int:
    """How many characters and classes a regular expression has when its counted repetitions, like {3,5}, are written out."""
    open_groups, size, last, at = list[int](), 0, 0, 0
    while at < len(pattern):
        char = pattern[at]
        if char == "{" and (count := _COUNT.match(pattern, at)):
            times = max(int(count[1]), int(count[3] or 0), 1)
            size, last, at = size + last * (times - 1), last * times, count.end()
            continue
        if char == "(":
            open_groups.append(size)
            size = 0
        elif char == ")" and open_groups:
            last, size = size, open_groups.pop() + size
        elif char not in "*+?|":
            size, last = size + 1, 1
        whole = _ATOM.match(pattern, at)
        at = whole.end() if whole else at + 1
    return size + sum(open_groups)


class _Bytes(TokenizerWrapper):
    """A vocabulary of the 256 bytes and an end, on which to try a grammar."""

    def __init__(self) -> None:
        self.is_tokenizer_wrapper = True
        self.eos_token_id, self.bos_token_id = _END, None
        self.tokens = [*(bytes([b]) for b in range(256)), b"<end>"]
        self.special_token_ids = [_END]

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


@cache
def _bytes() -> LLTokenizer:
    return LLTokenizer(_Bytes())


def _checked(grammar: str, param: str) -> str:
    """Raises InvalidRequest for a grammar that is too large or does not compile."""
    if len(grammar) > MAX_GRAMMAR:
        raise InvalidRequest(f"the grammar has {len(grammar)} characters; at most {MAX_GRAMMAR} are supported", param)
    limits = LLParserLimits(
        initial_lexer_fuel=GRAMMAR_FUEL, max_items_in_row=GRAMMAR_ITEMS, max_grammar_size=GRAMMAR_SYMBOLS, verbose_errors=False
    )
    matcher = LLMatcher(_bytes(), grammar, log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()
        matcher.consume_tokens(matcher.compute_ff_tokens())  # up to where there is a choice
        matcher.compute_bitmask()
    if matcher.is_error():
        raise InvalidRequest(f"not supported: {_reason(matcher.get_error())}", param)
    return grammar


def _reason(message: str) -> str:
    """llguidance's, in one line."""
    return " ".join(message.replace("<non-verbose/>", "").split())[:300]
