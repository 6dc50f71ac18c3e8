"""The parts that a model's text turns out to have, as it arrives: reasoning, content, or tool calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class ReasoningDelta:
    """What the model thinks before it answers."""

    text: str


@dataclass(frozen=True)
class ContentDelta:
    text: str


@dataclass(frozen=True)
class CallBegun:
    call: int
    """0 for the first one."""
    name: str


@dataclass(frozen=True)
class Arguments:
    """The next part of a call's arguments, which are JSON."""

    call: int
    text: str


Delta = ReasoningDelta | ContentDelta | CallBegun | Arguments


class Parser(Protocol):
    """Parses one choice. However the text is cut into pieces, the same result comes out, as early as it is certain."""

    @property
    def thinking(self) -> bool:
        """Whether the text is inside its reasoning."""
        ...

    @property
    def complete(self) -> bool:
        """Whether there are calls and the last one's arguments are complete."""
        ...

    def push(self, text: str) -> list[Delta]:
        """What is certain now."""
        ...

    def finish(self) -> list[Delta]:
        """The rest, when no more text comes."""
        ...


class PlainParser:
    """Everything is content."""

    thinking = complete = False

    def push(self, text: str) -> list[Delta]:
        return [ContentDelta(text)] if text else []

    def finish(self) -> list[Delta]:
        return []
