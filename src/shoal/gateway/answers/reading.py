"""What the choices of an answer think, say and call: one reading of it, for a writer of whichever endpoint."""

from __future__ import annotations

from dataclasses import replace

from shoal.gateway.answers.writer import Piece, Usage
from shoal.request import FinishReason
from shoal.text.answer_format import AnswerFormat
from shoal.text.deltas import Delta, PlainParser


class Reading:
    """It is given every piece of every choice, in order."""

    def __init__(self, format: AnswerFormat | None, choices: int) -> None:
        """format: None: all is content."""
        self.plain = format is None
        self._parsers = [PlainParser() if format is None else format.parser() for _ in range(choices)]
        self._thought = 0
        self._doubtful = [0] * choices
        """Tokens of which it is not certain yet what they are."""

    def deltas(self, piece: Piece) -> list[Delta]:
        """What is certain with this piece."""
        parser = self._parsers[piece.choice]
        before = parser.thinking
        out = parser.push(piece.text)
        self._doubtful[piece.choice] += sum(chunk.token is not None for chunk in piece.chunks)
        if before or parser.thinking:
            self._thought += self._doubtful[piece.choice]
        if before or parser.thinking or out:
            self._doubtful[piece.choice] = 0
        return out if piece.finish is None else [*out, *parser.finish()]

    def called(self, choice: int) -> bool:
        """Whether a choice has come to complete calls."""
        return self._parsers[choice].complete

    def finish(self, piece: Piece) -> str | None:
        """Why its choice is over with this piece, as chat says it; after `deltas`."""
        if piece.finish is FinishReason.STOP and self.called(piece.choice):
            return "tool_calls"
        return None if piece.finish is None else str(piece.finish)

    def usage(self, usage: Usage) -> Usage:
        """With the tokens of reasoning that were read."""
        return replace(usage, reasoning=self._thought)
