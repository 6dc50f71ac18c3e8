"""How a model writes an answer of which not all is content."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.text.deltas import Parser, PlainParser
from shoal.text.reasoning import ReasoningFormat, ReasoningParser
from shoal.text.tool_parser import ToolParser
from shoal.text.tools import ToolFormat


@dataclass(frozen=True)
class AnswerFormat:
    """calls: None: there are none to look for. reasoning: None: nor any of that. opened: the prompt has its beginning already."""

    calls: ToolFormat | None = None
    reasoning: ReasoningFormat | None = None
    opened: bool = False

    def parser(self) -> Parser:
        """For one choice."""
        answer = PlainParser() if self.calls is None else ToolParser(self.calls)
        return answer if self.reasoning is None else ReasoningParser(self.reasoning, self.opened, answer)
