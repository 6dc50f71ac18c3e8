"""How a model writes an answer that is not only content: its reasoning and its calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from shoal.text import harmony
from shoal.text.arguments import Kind, Kinds
from shoal.text.deltas import Parser, PlainParser
from shoal.text.harmony import HarmonyParser
from shoal.text.reasoning import ReasoningFormat, ReasoningParser
from shoal.text.tool_parser import ToolParser
from shoal.text.tools import HARMONY, ToolFormat


@dataclass(frozen=True)
class AnswerFormat:
    """calls: None: do not look for calls. reasoning: None: do not look for reasoning. opened: the prompt already contains its
    beginning."""

    calls: ToolFormat | None = None
    reasoning: ReasoningFormat | None = None
    opened: bool = False
    kinds: Kinds = field(default_factory=dict[str, Mapping[str, Kind]])
    """Kinds of the calls' arguments, if they are in tags."""
    names: tuple[str, ...] = ()
    """Of the tools, if their calls are recognised by them, or even without the format's marker (see loose.py)."""

    @property
    def written(self) -> list[str]:
        """The parts of an answer that belong to its format."""
        known = (self.calls, self.reasoning, self.calls and self.calls.tags)
        fields = [getattr(format, each.name) for format in known if format is not None for each in dataclasses.fields(format)]
        marks = harmony.MARKS if self.reasoning is not None and self.reasoning.channels else ()
        return [*(part for part in fields if isinstance(part, str)), *marks]

    def parser(self) -> Parser:
        """A parser for one choice."""
        if self.reasoning is not None and self.reasoning.channels:
            return HarmonyParser(calls=self.calls == HARMONY)
        answer = PlainParser() if self.calls is None else ToolParser(self.calls, self.kinds, self.names)
        return answer if self.reasoning is None else ReasoningParser(self.reasoning, self.opened, answer)
