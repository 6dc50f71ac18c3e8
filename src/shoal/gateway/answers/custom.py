"""Custom tools, which take text instead of JSON. To the model such a tool is a function with one argument, `input`."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from shoal.errors import InvalidRequest
from shoal.gateway.answers.conversation import RequestedFunction
from shoal.text.lark import inside_json, inside_json_regex

Syntax = Literal["lark", "regex"]

_ARGUMENTS: dict[str, Any] = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}
_MOST = 64 << 10
"""Most characters of a grammar."""
_OPENING = re.compile(r'\s*\{\s*"input"\s*:\s*"')


def custom_function(name: str, description: str | None, grammar: tuple[Syntax, str] | None, where: str) -> RequestedFunction:
    """grammar: that its text must match. where: the field of the body that defines it. Raises InvalidRequest."""
    if grammar is None:
        return RequestedFunction(name, description, _ARGUMENTS, True, where, custom=True)
    syntax, definition = grammar
    if len(definition) > _MOST:
        raise InvalidRequest(f"the grammar of the tool '{name}' has more than {_MOST} characters", where)
    try:
        if syntax == "lark":
            inside = inside_json(definition)
        else:
            inside = f"start: {inside_json_regex(definition.removeprefix('^').removesuffix('$'))}"
    except ValueError as error:
        raise InvalidRequest(f"the grammar of the tool '{name}': {error}", where) from None
    told = f"The input has to match this {'Lark grammar' if syntax == 'lark' else 'regular expression'}:\n{definition}"
    return RequestedFunction(name, f"{description}\n\n{told}" if description else told, _ARGUMENTS, True, where, custom=True, input=inside)


def called_with(text: str) -> dict[str, Any]:
    """A call's arguments, in the form of chat templates."""
    return {"input": text}


class Input:
    """Reads a call's text from its arguments as they arrive."""

    def __init__(self) -> None:
        self._held = ""
        self._inside = self._over = False

    def push(self, arguments: str) -> str:
        """What is certain of the text now."""
        self._held += arguments
        if not self._inside:
            opening = _OPENING.match(self._held)
            if opening is None:
                return ""
            self._inside, self._held = True, self._held[opening.end() :]
        out: list[str] = []
        while not self._over and (taken := self._next()):
            out.append(taken)
        return "".join(out)

    def _next(self) -> str:
        """The next characters; '' if they have not arrived yet, or at the end."""
        plain = re.match(r'[^"\\]+', self._held)
        if plain is not None:
            self._held = self._held[plain.end() :]
            return plain[0]
        if self._held.startswith('"'):
            self._over = True
            return ""
        length = 2
        if self._held[1:2] == "u":
            high = self._held[2:4].lower() in ("d8", "d9", "da", "db")
            length = 12 if high else 6
        if len(self._held) < length:
            return ""
        escape, self._held = self._held[:length], self._held[length:]
        try:
            return str(json.loads(f'"{escape}"')).encode(errors="replace").decode()
        except ValueError:
            return escape  # not JSON: a model without a grammar wrote it
