"""What is drafted for one sequence, and how much of it a step should verify."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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

    def length(self, draft: Draft, most: int, others: int, seconds: Callable[[int], float]) -> int:
        """How many tokens of a draft make the most tokens per second; 0: it does not pay.

        others: tokens that the step samples without them. seconds: that it takes with so many of them.
        """
        chance, right, expected, length = self._acceptance.chance(draft.matched), 1.0, float(others), 0
        rate = expected / seconds(0)
        while length < min(most, len(draft.tokens)):
            right *= chance
            expected += right
            if (faster := expected / seconds(length + 1)) <= rate:
                break
            rate, length = faster, length + 1
        return length
