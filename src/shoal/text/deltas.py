"""What a model's text turns out to be, as it comes: thought, content, or calls of tools."""

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
    """One choice's. However the text is cut into pieces, the same comes out, as early as it is certain."""

    @property
    def thinking(self) -> bool:
        """Whether the text is in its reasoning."""
        ...

    @property
    def complete(self) -> bool:
        """Whether there are calls, and the last one's arguments have come to their end."""
        ...

    def push(self, text: str) -> list[Delta]:
        """What is certain now."""
        ...

    def finish(self) -> list[Delta]:
        """The rest, when no more text comes."""
        ...


class PlainParser:
    """All is content."""

    thinking = complete = False

    def push(self, text: str) -> list[Delta]:
        return [ContentDelta(text)] if text else []

    def finish(self) -> list[Delta]:
        return []
