"""Finds where the arguments of a call end, and converts them to JSON as they arrive."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal, Protocol

from shoal.text.detokenizer import overlap
from shoal.text.tools import Tags

Kind = Literal["text", "text or null"]
"""How to read the value of an argument in tags that is not JSON."""
_Kind = Kind | Literal["json"]
Kinds = Mapping[str, Mapping[str, Kind]]
"""By function and argument."""


class ArgumentReader(Protocol):
    over: bool

    def push(self, text: str) -> tuple[str, str]:
        """The JSON that is certain now, and what is not read: text that may continue, or what follows the arguments once they
        are `over`."""
        ...


class JsonArguments:
    """A JSON object."""

    def __init__(self) -> None:
        self._depth, self._quoted, self._escaped = 0, False, False
        self.over = False

    def push(self, text: str) -> tuple[str, str]:
        for at, char in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped = char == "\\"
                self._quoted = char != '"'
            elif char == '"':
                self._quoted = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if not self._depth:
                    self.over = True
                    return text[: at + 1], text[at + 1 :]
        return text, ""


class TaggedArguments:
    """Arguments one by one, in tags; they are over when no other tag begins."""

    def __init__(self, tags: Tags, kinds: Mapping[str, Kind]) -> None:
        self._tags, self._kinds = tags, kinds
        self._kind: _Kind | None = None
        """Kind of the value that is being read; None: between values."""
        self._fresh = True
        """Whether nothing of that value has been returned yet."""
        self._before = "{"
        self.over = False

    def push(self, text: str) -> tuple[str, str]:
        out = ""
        while not self.over:
            new, rest = self._between(text) if self._kind is None else self._value(text)
            out += new
            if rest == text and not self.over:
                break
            text = rest
        return out, text

    def _between(self, text: str) -> tuple[str, str]:
        begin, middle = self._tags.begin, self._tags.middle
        if not text.startswith(begin):
            if begin.startswith(text):
                return "", text
            self.over = True
            return ("{}" if self._before == "{" else "}"), text
        at = text.find(middle, len(begin))
        if at < 0:
            return "", text
        name = text[len(begin) : at]
        self._kind = self._kinds.get(name) or "json"
        self._fresh = True
        told = f"{self._before}{json.dumps(name, ensure_ascii=False)}: "
        self._before = ", "
        return told, text[at + len(middle) :]

    def _value(self, text: str) -> tuple[str, str]:
        end = self._tags.end
        at = text.find(end)
        value = text[:at] if at >= 0 else text[: len(text) - overlap(text, end)]
        if self._kind == "text or null" and self._fresh and "null".startswith(value) and (at < 0 or value == "null"):
            if at < 0:
                return "", text
            out = value
        elif self._kind == "json":
            out = value
        else:
            quote = '"' if self._fresh and (value or at >= 0) else ""
            out = quote + json.dumps(value, ensure_ascii=False)[1:-1] + ('"' if at >= 0 else "")
        self._fresh = self._fresh and not value
        if at < 0:
            return out, text[len(value) :]
        self._kind = None
        return out, text[at + len(end) :]
