"""Writes an answer to the terminal as it arrives: lines break between words, and control characters are not obeyed."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import TextIO

from rich.cells import cell_len

from shoal.cli.show import err, out

_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters: a model that writes them, or repeats them from a document, must not move the cursor or set the title."""
_TAB = 4


class Wrapped:
    """Text in a limited number of columns. A word that does not fit is erased and written again on the next line."""

    def __init__(self, file: TextIO, width: Callable[[], int], before: str = "", after: str = "") -> None:
        """before, after: written around each piece, to style it."""
        self._file, self._width, self._before, self._after = file, width, before, after
        self._column, self._word = 0, ""

    @property
    def at_start(self) -> bool:
        """Whether the cursor is at the start of a line."""
        return self._column == 0

    def write(self, text: str) -> None:
        if text := _OBEYED.sub("", text):
            limit = max(self._width() - 1, 8)  # in the last column terminals disagree about the cursor's position
            self._file.write(self._before + "".join(self._placed(char, limit) for char in text) + self._after)
            self._file.flush()

    def _placed(self, char: str, limit: int) -> str:
        """The output that writes a character."""
        if char == "\n":
            self._column, self._word = 0, ""
            return char
        if char == "\t":
            return "".join(self._placed(" ", limit) for _ in range(_TAB - self._column % _TAB))
        cells = cell_len(char)
        if char == " ":
            self._word = ""
            if self._column >= limit:  # the line break replaces it
                return ""
        elif self._column + cells > limit:
            return self._broken() + self._placed(char, limit)
        else:
            self._word = "" if cells > 1 else self._word + char  # between wide characters lines may break
        self._column += cells
        return char

    def _broken(self) -> str:
        """A new line that begins with the current word, unless the word fills the line."""
        word, cells = self._word, cell_len(self._word)
        if not word or cells >= self._column:
            self._column, self._word = 0, ""
            return "\n"
        self._column = cells
        return f"\x1b[{cells}D\x1b[K\n{word}"


class Plain:
    """Text for a pipe or file: unchanged."""

    def __init__(self, file: TextIO) -> None:
        self._file, self.at_start = file, True

    def write(self, text: str) -> None:
        if text:
            self._file.write(text)
            self._file.flush()
            self.at_start = text.endswith("\n")


class Sheet:
    """An answer on stdout, and its reasoning, dimmed, on stderr, if that is a terminal."""

    def __init__(self) -> None:
        wrap = out.is_terminal and not out.is_dumb_terminal
        self._answer = Wrapped(sys.stdout, lambda: out.width) if wrap else Plain(sys.stdout)
        dim = err.is_terminal and not err.is_dumb_terminal
        self._thoughts = Wrapped(sys.stderr, lambda: err.width, "\x1b[2m", "\x1b[0m") if dim else None
        self._thinking = self._begun = False

    def thought(self, text: str) -> None:
        if text and self._thoughts is not None:
            self._thinking = True
            self._thoughts.write(text)

    def said(self, text: str) -> None:
        if text and self._thinking:
            self._thought_out()
        self._begun = self._begun or bool(text)
        self._answer.write(text)

    def _thought_out(self) -> None:
        assert self._thoughts is not None
        self._thinking = False
        self._thoughts.write("\n" if self._thoughts.at_start else "\n\n")

    def end(self) -> None:
        if self._thinking:
            self._thought_out()
        if self._begun and not self._answer.at_start:
            self._answer.write("\n")
