"""Chat templates: Jinja from the model's files, therefore rendered in a sandbox.

The environment is that of transformers (chat_template_utils.py): trimmed blocks, loop controls, `raise_exception`, `tojson`.

Everything that a template is given is marked (see marks.py), so that none of it becomes a control token. Templates search for
some control tokens in their input, as in `'</think>' in content`: a text literal in such a place is marked in the same way. A
literal that the template first puts into a variable is not marked, and is not found if it contains a control token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import meta
from jinja2.ext import Extension
from jinja2.nodes import Call, Compare, Const, Filter, Getattr, Getitem, Node, Template, Test
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shoal.errors import CorruptModel, InvalidRequest, ShoalError
from shoal.text.marks import ESCAPED, MARK, Marks, plain
from shoal.text.reasoning import CHANNELS
from shoal.text.reasoning import detect as detect_reasoning
from shoal.text.teaching import attached, described, observed, spelled
from shoal.text.tools import DEEPSEEK, DEEPSEEK_V31, GLM4, detect

RESERVED = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "bos_token", "eos_token", "pad_token"}
)
"""Names that templates use for what they are always given."""

_REASONING = ("reasoning_content", "thinking", "reasoning")
"""The names that templates use for the reasoning of an earlier answer, as a field of its message: Qwen3 and DeepSeek; gpt-oss; others."""

_TESTS_CONTENT = re.compile(r"(?:\.content|\[['\"]content['\"]\]) is (?:not )?none")
_SYSTEM_TOOLS = re.compile(r"message(?:\.tools|\[['\"]tools['\"]\])")
"""Where the system message has the tools, as in Phi-4-mini's template."""
_JOINED = re.compile(r"\.description\s*\+|\+\s*[\w.]*\.description")
"""A function without a description would be an error there, as in gpt-oss's template."""


class _Refused(Exception):
    """The template itself refused the conversation."""


def _raise(message: str) -> NoReturn:
    raise _Refused(message)


def _now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None, sort_keys: bool = False
) -> str:
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    if ensure_ascii:  # marks are not part of the text
        text = text.replace(_ascii(MARK), MARK).replace(_ascii(ESCAPED), _ascii(plain(ESCAPED)))
    return text


def _string(value: Any) -> str:
    """What Python writes for a value, without escapes in marks."""
    if isinstance(value, str):
        return value
    return str(value).replace(repr(MARK)[1:-1], MARK).replace(repr(ESCAPED)[1:-1], repr(plain(ESCAPED))[1:-1])


def _ascii(text: str) -> str:
    return json.dumps(text)[1:-1]


class _Generation(Extension):
    """{% generation %} … {% endgeneration %} marks the assistant's part for training; here it just gives its content."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own way

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """With types for what jinja2 leaves untyped."""

    filters: dict[str, Any]
    globals: dict[str, Any]


_SEARCHES = frozenset(
    [
        "count",
        "endswith",
        "find",
        "index",
        "lstrip",
        "partition",
        "removeprefix",
        "removesuffix",
        "replace",
        "rfind",
        "rindex",
        "rpartition",
        "rsplit",
        "rstrip",
        "split",
        "startswith",
        "strip",
    ]
)
"""String methods that search for their first argument."""


def _look_for_marked(parsed: Template, marks: Marks) -> None:
    """Marks the text literals that a template compares with its input, or searches for in it."""
    looked: list[Node] = [*parsed.find_all(Compare)]
    for call in parsed.find_all(Call):
        if isinstance(call.node, Getattr | Getitem):
            name = call.node.attr if isinstance(call.node, Getattr) else call.node.arg.value if isinstance(call.node.arg, Const) else ""
            looked += call.args[:1] if name in _SEARCHES else []
    for search in parsed.find_all((Filter, Test)):
        looked += search.args[:1] if isinstance(search, Test) or search.name == "replace" else []
    constants = {id(c): c for node in looked for c in (node, *node.find_all(Const)) if isinstance(c, Const)}
    for constant in constants.values():
        if isinstance(constant.value, str):
            constant.value = marks.within(constant.value)


class ChatTemplate:
    """`tools`: the format of tool calls that it teaches, if any. `reasoning`: its format of reasoning, if any.
    `variables`: names that it reads besides the conversation.
    """

    def __init__(
        self,
        source: object,
        special: Mapping[str, str],
        where: object,
        fault: Callable[[object, str], ShoalError] = CorruptModel,
        marks: Marks | None = None,
    ) -> None:
        """special: special tokens by name. fault: makes the error to raise, from `where` and the problem.
        marks: added to everything except the template's own words; None: anybody may write control tokens.
        """
        if not isinstance(source, str):
            raise fault(where, "the chat template is no text")
        environment = _Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation], finalize=_string
        )
        environment.filters |= {"tojson": _tojson, "string": _string}
        environment.globals.update(raise_exception=_raise, strftime_now=_now)
        try:
            parsed = environment.parse(source)
            read = meta.find_undeclared_variables(parsed)
            if marks is not None:
                _look_for_marked(parsed, marks)
            self._template = environment.from_string(parsed)
        except Exception as error:  # as below; for deep nesting it is RecursionError or SyntaxError
            raise fault(where, f"the chat template is no valid Jinja ({error})") from error
        self.variables = frozenset(read) - RESERVED - special.keys() - environment.globals.keys()
        fields = set(re.findall(r"(?:\.get\(['\"]|\.|\[['\"])(\w+)", source))
        self._reasoning = next((name for name in _REASONING if name in fields), None)
        self.source = source
        self._special, self._marks = dict(special), marks
        self.tools = detect(source)
        self.reasoning = detect_reasoning(source)
        self._none = self.tools in (DEEPSEEK, DEEPSEEK_V31) and _TESTS_CONTENT.search(source) is not None
        self._shows_calls = "tool_calls" in source
        self._shows_tools = re.search(r"\w*tools\b", source) is not None
        self._tools_field = _SYSTEM_TOOLS.search(source) is not None
        self._joins_descriptions = _JOINED.search(source) is not None
        self._also = ("xml_tools",) if "xml_tools" in read and "tools" not in read else ()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        answer: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt, marked. Raises InvalidRequest for a conversation that the template refuses.

        messages:  as in transformers: a tool call's arguments are an object, not its JSON; `reasoning_content` is left out
                   if the template does not use it.
        tools:     {"type": "function", "function": {"name", "description", "parameters"}}
        answer:    whether to include the beginning of the assistant's turn.
        variables: by name, none of them RESERVED.
        """
        given: dict[str, Any] = {
            **(variables or {}),
            "messages": [self._known(message) for message in messages],
            "tools": list(tools) or None,
            "documents": None,
            "add_generation_prompt": answer,
        }
        try:
            if self._marks is not None:
                given = self._marks.value(given)
            self._teach(given)
            return self._template.render(**given, **self._special)
        except _Refused as error:
            raise InvalidRequest(f"the model's chat template refuses these messages: {plain(str(error))}", "messages") from error
        except Exception as error:  # a template is a foreign program: jinja2's filters alone raise a dozen kinds of errors
            raise InvalidRequest(f"the model's chat template cannot render these messages: {plain(str(error))}", "messages") from error

    def _known(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """The message in the form that the template expects: its reasoning under the name that the template reads, and None for
        an empty text before calls if the template would write that text."""
        known = dict(message)
        reasoning = known.pop("reasoning_content", None)
        calls, said = known.get("tool_calls"), known.get("content")
        if reasoning is not None and self._reasoning is not None:
            if calls and said and self.reasoning == CHANNELS:  # gpt-oss's template has one message before a call, in `analysis`
                known["content"], reasoning = "", f"{reasoning}\n\n{said}"
            known[self._reasoning] = reasoning
        if calls and said == "" and self._none:
            known["content"] = None
        return known

    def _teach(self, given: dict[str, Any]) -> None:
        """Adds the tools and calls that the template does not show itself."""
        format, tools = self.tools, given["tools"]
        if format is None:
            return
        if tools and self._joins_descriptions:
            given["tools"] = tools = [{**tool, "function": {"description": "", **tool["function"]}} for tool in tools]
        if format == GLM4:
            given["messages"] = observed(given["messages"])
        elif not self._shows_calls:
            given["messages"] = [spelled(message, format) for message in given["messages"]]
        if tools:
            given |= dict.fromkeys(self._also, tools)
            if self._tools_field:
                given["messages"] = attached(given["messages"], tools)
            elif not self._shows_tools:
                given["messages"] = described(given["messages"], tools, format)
