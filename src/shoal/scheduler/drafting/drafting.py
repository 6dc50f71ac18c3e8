"""What is drafted for one sequence, and how much of it a step should verify."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log

from shoal.scheduler.drafting.acceptance import Acceptance
from shoal.scheduler.drafting.draft import Draft, Drafter

LONGEST = 16
"""Most tokens of a draft."""


class Drafting:
    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self._acceptance = Acceptance()
        self._last = Draft([])
        self._at = 0
        """Tokens that the sequence had when that was made."""

    def propose(self, tokens: Sequence[int], most: int) -> Draft:
        """tokens: prompt and answer. It also learns from what was said since the last draft."""
        if self._last.tokens:
            self._acceptance.learn(self._last, tokens[self._at : self._at + len(self._last.tokens)])
        self._last, self._at = self._drafter.propose(tokens, most), len(tokens)
        return self._last

    def length(self, draft: Draft, most: int, streams: int, seconds: Callable[[int], float]) -> int:
        """How many tokens of a draft a step should verify; 0: none.

        What a stream gains, the others of its step lose in part: they wait for its rows. So the product of all streams' tokens per second
        counts, as in proportional fairness (Kelly, 1997); of a single stream that is its own speed.

        streams: samples of the step. seconds: that it takes with so many tokens of the draft.
        """
        chance, right, tokens, length = self._acceptance.chance(draft.matched), 1.0, 1.0, 0
        best, alone = 0.0, seconds(0)
        while length < min(most, len(draft.tokens)):
            right *= chance
            tokens += right
            if (gain := log(tokens) - streams * log(seconds(length + 1) / alone)) <= best:
                break
            best, length = gain, length + 1
        return length
