"""A model's text to what it says and what it calls, as the text comes: the inverse of `grammar.tool_calls`.

However the text is cut into pieces, the same content and the same calls come out, as early as they are certain. What only
looks like a call is content. White space before a call is none.
"""

from __future__ import annotations

import enum
import json
import re

from shoal.text.deltas import Arguments, CallBegun, Content, Delta
from shoal.text.detokenizer import overlap
from shoal.text.tools import ToolFormat

_NAME = re.compile(r"[A-Za-z0-9_-]{0,64}")


class _State(enum.Enum):
    CONTENT = enum.auto()
    HEAD = enum.auto()
    """In between the trigger, or a call, and the arguments of the next call."""
    ARGUMENTS = enum.auto()
    OVER = enum.auto()
    """After the last call: nothing follows that means anything."""
    PLAIN = enum.auto()
    """Content to the end."""


class _Value:
    """Finds where a JSON object ends that has begun."""

    def __init__(self) -> None:
        self._depth, self._quoted, self._escaped = 1, False, False

    def end(self, text: str) -> int | None:
        """How many of these characters still belong to it; None: all, and more will."""
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
                    return at + 1
        return None


class ToolParser:
    """One choice's."""

    def __init__(self, format: ToolFormat) -> None:
        self._format = format
        self._name = f'{{{json.dumps(format.name_key)}: "'
        self._arguments = f", {json.dumps(format.arguments_key)}: {{"
        self._state = _State.CONTENT
        self._held = ""
        self._before = ""
        """What was taken for the beginning of a call, should it be none."""
        self._lead = ""
        """What has to come before the next call's JSON."""
        self._value = _Value()
        self.calls = 0
        """Those that have begun."""

    thinking = False

    @property
    def complete(self) -> bool:
        """Whether there are calls, and the last one's arguments have come to their end."""
        return self.calls > 0 and self._state is not _State.ARGUMENTS

    def push(self, text: str) -> list[Delta]:
        """What is certain now."""
        self._held += text
        out: list[Delta] = []
        while self._step(out):
            pass
        return out

    def finish(self) -> list[Delta]:
        """The rest, when no more text comes. A call that was cut before its arguments is none."""
        held, self._held = self._held, ""
        if self._state is _State.HEAD and not self.calls and not self._format.trigger:
            held = self._before + held
        elif self._state is not _State.CONTENT:
            held = ""
        return [Content(held)] if held else []

    def _step(self, out: list[Delta]) -> bool:
        """Whether it was a step after which there may be another."""
        match self._state:
            case _State.CONTENT:
                return self._content(out)
            case _State.HEAD:
                return self._head(out)
            case _State.ARGUMENTS:
                return self._within(out)
            case _State.PLAIN:
                self._emit(out, self._held)
                self._held = ""
            case _State.OVER:
                self._held = ""
        return False

    def _emit(self, out: list[Delta], text: str) -> None:
        if text:
            out.append(Content(text))

    def _content(self, out: list[Delta]) -> bool:
        trigger = self._format.trigger
        at = self._held.find(trigger) if trigger else _indent(self._held)
        if not trigger and at < len(self._held) and self._held[at] != "{":
            self._state = _State.PLAIN
            return True
        if 0 <= at < len(self._held):
            said = self._held[:at].rstrip()
            self._emit(out, said)
            self._before, self._held = self._held[len(said) : at + len(trigger)], self._held[at + len(trigger) :]
            self._lead = (self._format.opening + self._format.begin).removeprefix(trigger)
            self._state = _State.HEAD
            return True
        certain = self._held[: len(self._held) - overlap(self._held, trigger)].rstrip()
        self._emit(out, certain)
        self._held = self._held[len(certain) :]
        return False

    def _head(self, out: list[Delta]) -> bool:
        opening = self._lead + self._name
        if not self._held.startswith(opening):
            return False if opening.startswith(self._held) else self._no_call(out)
        rest = self._held[len(opening) :]
        found = _NAME.match(rest)
        name = found[0] if found else ""
        closing, rest = '"' + self._arguments, rest[len(name) :]
        if not rest.startswith(closing) or not name:
            return False if closing.startswith(rest) and (name or not rest) else self._no_call(out)
        out += [CallBegun(self.calls, name), Arguments(self.calls, "{")]
        self.calls += 1
        self._value, self._held, self._state = _Value(), rest[len(closing) :], _State.ARGUMENTS
        return True

    def _within(self, out: list[Delta]) -> bool:
        end = self._value.end(self._held)
        text = self._held[:end]
        if text:
            out.append(Arguments(self.calls - 1, text))
        if end is None:
            self._held = ""
            return False
        self._held = self._held[end:]
        format = self._format
        self._lead = "}" + format.end + (format.separator or "") + format.begin
        self._state = _State.OVER if format.separator is None else _State.HEAD
        return True

    def _no_call(self, out: list[Delta]) -> bool:
        if self.calls:
            self._state = _State.OVER
            return True
        self._emit(out, self._before)
        self._state = _State.CONTENT if self._format.trigger else _State.PLAIN
        return True


def _indent(text: str) -> int:
    return len(text) - len(text.lstrip())
