"""Chat templates: Jinja from the model's files, so rendered in a sandbox.

The environment is that of transformers (chat_template_utils.py): trimmed blocks, loop controls, `raise_exception`, `tojson`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn, cast

from jinja2 import TemplateError, meta
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shoal.errors import CorruptModel, InvalidRequest, ShoalError
from shoal.text.tools import detect

RESERVED = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "bos_token", "eos_token", "pad_token"}
)
"""Names that templates know for what they are told in any case."""

_REASONING = ("reasoning_content", "thinking", "reasoning")
"""What templates call an earlier answer's reasoning, as a field of its message: Qwen3 and DeepSeek; gpt-oss; others."""


class _Refused(Exception):
    """The template itself refused the conversation."""


def _raise(message: str) -> NoReturn:
    raise _Refused(message)


def _now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Generation(Extension):
    """{% generation %} … {% endgeneration %} marks the assistant's part for training; here it is just its content."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own way

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """`tools`: the format of tool calls that it teaches, if any. `variables`: names that it reads beside the conversation."""

    def __init__(
        self, source: object, special: Mapping[str, str], where: object, fault: Callable[[object, str], ShoalError] = CorruptModel
    ) -> None:
        """special: what special tokens are called. fault: makes what is raised, of `where` and what is wrong there."""
        if not isinstance(source, str):
            raise fault(where, "the chat template is no text")
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
        )
        environment.filters["tojson"] = _tojson
        cast("dict[str, Any]", environment.globals).update(raise_exception=_raise, strftime_now=_now)
        try:
            self._template = environment.from_string(source)
            read = meta.find_undeclared_variables(environment.parse(source))
        except TemplateError as error:
            raise fault(where, f"the chat template is no valid Jinja ({error})") from error
        self.variables = frozenset(read) - RESERVED - special.keys() - environment.globals.keys()
        fields = set(re.findall(r"(?:\.|\[['\"])(\w+)", source))
        self._reasoning = next((name for name in _REASONING if name in fields), None)
        self.source = source
        self._special = dict(special)
        self.tools = detect(source)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        answer: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt. Raises InvalidRequest for a conversation that the template refuses.

        messages:  as transformers has them: a tool call's arguments are an object, not its JSON; `reasoning_content` is left out
                   where the template does not know such a thing.
        tools:     {"type": "function", "function": {"name", "description", "parameters"}}
        answer:    up to where the assistant begins.
        variables: by name, none of them RESERVED.
        """
        told = {**(variables or {}), **self._special, "documents": None, "add_generation_prompt": answer}
        try:
            return self._template.render(messages=[self._known(m) for m in messages], tools=list(tools) or None, **told)
        except _Refused as error:
            raise InvalidRequest(f"the model's chat template refuses these messages: {error}", "messages") from error
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError, MemoryError) as error:
            raise InvalidRequest(f"the model's chat template cannot render these messages: {error}", "messages") from error

    def _known(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """With its reasoning under the name that the template reads."""
        if "reasoning_content" not in message or self._reasoning == "reasoning_content":
            return message
        known = dict(message)
        reasoning = known.pop("reasoning_content")
        return known if self._reasoning is None else {**known, self._reasoning: reasoning}
