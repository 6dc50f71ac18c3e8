"""A guess at what a sequence says next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Draft:
    tokens: list[int]
    """As many as could be guessed, which may be none."""
    matched: int = 0
    """How much supports the guess, in tokens: what is alike in the sequence's end and where the guess comes from."""


class Drafter(Protocol):
    """Guesses for one sequence."""

    def propose(self, tokens: Sequence[int], most: int) -> Draft:
        """tokens: the sequence, prompt and answer; it has only grown since the last call."""
        ...
