"""Reads what the choices of an answer think, say and call, for the writers of all endpoints."""

from __future__ import annotations

from dataclasses import replace

from shoal.gateway.answers.writer import Piece, Usage
from shoal.request import FinishReason
from shoal.text.answer_format import AnswerFormat
from shoal.text.deltas import Delta, PlainParser


class Reading:
    """Takes every piece of every choice, in order."""

    def __init__(self, format: AnswerFormat | None, choices: int) -> None:
        """format: None: everything is content."""
        self.plain = format is None
        self._parsers = [PlainParser() if format is None else format.parser() for _ in range(choices)]
        self._thought = 0
        self._doubtful = [0] * choices
        """Tokens whose kind is not certain yet."""

    def deltas(self, piece: Piece) -> list[Delta]:
        """What has become certain with this piece."""
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
        """Whether a choice has completed any calls."""
        return self._parsers[choice].complete

    def finish(self, piece: Piece) -> str | None:
        """Why its choice ends with this piece, in the terms of the chat API; call it after `deltas`."""
        if piece.finish is FinishReason.STOP and self.called(piece.choice):
            return "tool_calls"
        return None if piece.finish is None else str(piece.finish)

    def usage(self, usage: Usage) -> Usage:
        """Adds the count of reasoning tokens."""
        return replace(usage, reasoning=self._thought)
