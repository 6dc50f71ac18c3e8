"""Guesses from the sequence itself: what followed where its last tokens came before (prompt lookup; Saxena, 2023).

Places are found as in deflate (RFC 1951, section 4): of each pair of tokens the latest place is known, and from each place the one before
it. A few of the latest places are compared, and the one with the longest common end counts, among equals the latest. So a token costs the
same however long the sequence is.
"""

from __future__ import annotations

from collections.abc import Sequence

from shoal.scheduler.drafting.draft import Draft

PLACES = 8
"""Most places that are compared."""
LONGEST = 16
"""Most tokens that are compared at each; longer common ends count as this."""


class PromptLookup:
    """Of one sequence."""

    def __init__(self) -> None:
        self._latest: dict[int, int] = {}
        """By pair, as one number: the place of its second token."""
        self._before: list[int] = []
        """By place: where the pair that ends there came before; -1: nowhere."""

    def propose(self, tokens: Sequence[int], most: int) -> Draft:
        self._note(tokens)
        end = len(tokens) - 1
        found, matched = -1, 0
        place = self._before[end]
        for _ in range(PLACES):
            if place < 0 or matched == LONGEST:
                break
            alike = _alike(tokens, place, end)
            if alike > matched:
                found, matched = place, alike
            place = self._before[place]
        return Draft(_copied(tokens, found + 1, most), matched) if matched else Draft([])

    def _note(self, tokens: Sequence[int]) -> None:
        for place in range(len(self._before), len(tokens)):
            if place == 0:
                self._before.append(-1)
                continue
            pair = tokens[place - 1] << 32 | tokens[place]
            self._before.append(self._latest.get(pair, -1))
            self._latest[pair] = place


def _alike(tokens: Sequence[int], place: int, end: int) -> int:
    """How many tokens up to `place` are as those up to `end`; the last two are."""
    alike, most = 2, min(LONGEST, place + 1)
    while alike < most and tokens[place - alike] == tokens[end - alike]:
        alike += 1
    return alike


def _copied(tokens: Sequence[int], begin: int, most: int) -> list[int]:
    """The tokens from `begin` on, which is after at least one of them; where they end, they begin again."""
    period = len(tokens) - begin
    return [tokens[begin + i % period] for i in range(most)]
