"""How likely a sequence's drafts are right, by how well its earlier ones were."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from shoal.scheduler.drafting.draft import Draft

_BOUNDS = (4, 8, 16)
"""Drafts are told apart by what supports them: fewer than 4 tokens, fewer than 8, fewer than 16, or more."""
_FIRST = (0.3, 0.6, 0.8, 0.9)
"""What is expected of each before anything is known of the sequence."""
_TRUST = 4.0  # tokens that this expectation counts for
_MEMORY = 0.97  # weight of a token relative to the next: about the last 30 count


class Acceptance:
    """Of one sequence."""

    def __init__(self) -> None:
        self._right = [chance * _TRUST for chance in _FIRST]
        self._all = [_TRUST] * len(_FIRST)

    def chance(self, matched: int) -> float:
        """That a draft's next token is right if those before it were."""
        kind = bisect_right(_BOUNDS, matched)
        return self._right[kind] / self._all[kind]

    def learn(self, draft: Draft, said: Sequence[int]) -> None:
        """said: what came where the draft was for, whether it was sent or not."""
        kind = bisect_right(_BOUNDS, draft.matched)
        for guessed, token in zip(draft.tokens, said, strict=False):
            self._right[kind] = self._right[kind] * _MEMORY + (guessed == token)
            self._all[kind] = self._all[kind] * _MEMORY + 1
            if guessed != token:
                break
