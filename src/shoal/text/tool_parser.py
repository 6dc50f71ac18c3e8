"""Splits a model's text into content and calls as it arrives: the inverse of `answer_grammar.answer_grammar`.

However the text is cut into pieces, the same content and the same calls come out, as early as they are certain. Text that only
looks like a call is content. White space before a call is not.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Collection

from shoal.text import loose
from shoal.text.arguments import ArgumentReader, JsonArguments, Kinds, TaggedArguments
from shoal.text.deltas import Arguments, CallBegun, ContentDelta, Delta
from shoal.text.detokenizer import overlap
from shoal.text.tools import ID, ToolFormat

_NAME = re.compile(r"[A-Za-z0-9_-]{0,64}")


_ID = re.compile("[A-Za-z0-9]*")


class _State(enum.Enum):
    CONTENT = enum.auto()
    HEAD = enum.auto()
    """Between the trigger, or a call, and the arguments of the next call."""
    ARGUMENTS = enum.auto()
    OVER = enum.auto()
    """After the last call: nothing meaningful follows."""
    PLAIN = enum.auto()
    """Content to the end."""


class ToolParser:
    """Parses one choice."""

    def __init__(self, format: ToolFormat, kinds: Kinds | None = None, names: Collection[str] = ()) -> None:
        """kinds: of arguments in tags. names: of the tools, for formats that are `named`, or that may omit their marker."""
        self._format, self._kinds = format, kinds or {}
        self._names = frozenset(names)
        self._loose = frozenset[str]() if format.named else self._names
        self._middle = format.middle + ("{" if format.tags is None else "")
        self._state = _State.CONTENT
        self._held = ""
        self._before = ""
        """The text taken for the beginning of a call, in case it is not one."""
        self._lead = ""
        """The text that must precede the next call's name."""
        self._value: ArgumentReader = JsonArguments()
        self.calls = 0
        """Calls that have begun."""

    thinking = False

    @property
    def complete(self) -> bool:
        """Whether there are calls and the last one's arguments are complete."""
        return self.calls > 0 and self._state is not _State.ARGUMENTS

    def push(self, text: str) -> list[Delta]:
        """What is certain now."""
        self._held += text
        out: list[Delta] = []
        while self._step(out):
            pass
        return out

    def finish(self) -> list[Delta]:
        """The rest, when no more text comes. A call that was cut off before its arguments does not count."""
        held, self._held = self._held, ""
        if self._state is _State.HEAD and not self.calls and not self._format.trigger:
            held = self._before + held
        elif self._state is not _State.CONTENT:
            held = ""
        return [ContentDelta(held)] if held else []

    def _step(self, out: list[Delta]) -> bool:
        """Makes one step. Returns whether another may follow."""
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
            out.append(ContentDelta(text))

    def _content(self, out: list[Delta]) -> bool:
        trigger = self._format.trigger
        if not trigger:
            return self._bare()
        if self._loose:
            if (found := loose.begins(self._held, self._loose)) is not None:
                return self._begin(out, *found)
            if loose.may_begin(self._held):
                return False
            self._loose = frozenset[str]()
        at = self._held.find(trigger)
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

    def _bare(self) -> bool:
        """For a format whose calls have no unique marker: calls begin the answer, or there are none."""
        format, said = self._format, self._held.lstrip()
        rest = said.removeprefix(format.before).lstrip() if format.before else said
        if not rest or (format.before and len(said) < len(format.before) and format.before.startswith(said)):
            return False
        self._lead = format.opening + format.begin
        self._before, self._held = self._held[: len(self._held) - len(rest)], rest
        self._state = _State.HEAD
        return True

    def _head(self, out: list[Delta]) -> bool:
        lead = _after(self._held, self._lead)
        if lead is None or lead < 0:
            return False if lead is None else self._no_call(out)
        rest = self._held[lead:]
        found = _NAME.match(rest)
        name = found[0] if found else ""
        if not rest[len(name) :]:
            return False
        if self._format.named and name not in self._names:
            return self._no_call(out)
        middle = _after(rest[len(name) :], self._middle) if name else -1
        if middle is None or middle < 0:
            return False if middle is None else self._no_call(out)
        return self._begin(out, name, lead + len(name) + middle - (len(self._middle) - len(self._format.middle)))

    def _begin(self, out: list[Delta], name: str, at: int) -> bool:
        """at: where its arguments begin."""
        out.append(CallBegun(self.calls, name))
        self.calls += 1
        tags = self._format.tags
        self._value = JsonArguments() if tags is None else TaggedArguments(tags, self._kinds.get(name, {}))
        self._held, self._state = self._held[at:], _State.ARGUMENTS
        return True

    def _within(self, out: list[Delta]) -> bool:
        text, self._held = self._value.push(self._held)
        if text:
            out.append(Arguments(self.calls - 1, text))
        if not self._value.over:
            return False
        format = self._format
        self._lead = format.end + (format.separator or "") + format.begin
        self._state = _State.OVER if format.separator is None or self._loose else _State.HEAD
        return True

    def _no_call(self, out: list[Delta]) -> bool:
        if self.calls:
            self._state = _State.OVER
            return True
        self._emit(out, self._before)
        self._state = _State.CONTENT if self._format.trigger else _State.PLAIN
        return True


def _after(text: str, expected: str) -> int | None:
    """The length of `expected` at the beginning of a text; -1 if there is something else; None if it may still come."""
    at = 0
    for number, part in enumerate(expected.split(ID)):
        if number:
            found = _ID.match(text, at)
            end = at if found is None else found.end()
            if end == at < len(text):
                return -1
            at = end
        if not text.startswith(part, at):
            return None if part.startswith(text[at:]) else -1
        at += len(part)
    return at
