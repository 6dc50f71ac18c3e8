"""How many requests may be sent to a further replica, so that retries do not multiply an overload."""

from __future__ import annotations

_SECONDS = 10.0
"""For which unused retries are kept, of those that time allows."""
_MOST = 100.0
"""Unused retries that are kept, of those that requests allow."""


class RetryBudget:
    """share: retries that each request allows. rate: retries that each second allows."""

    def __init__(self, share: float, rate: float) -> None:
        self._share, self._rate = share, rate
        self._at_rest = max(rate * _SECONDS, 1.0) if rate else 0.0
        self._most = self._at_rest + (_MOST if share else 0.0)
        self._left = self._at_rest
        self._at = 0.0

    def request(self) -> None:
        """One that is no retry."""
        self._left = min(self._left + self._share, self._most)

    def take(self, now: float) -> bool:
        """Whether one more retry is allowed, which then counts."""
        if self._left < self._at_rest:
            self._left = min(self._left + self._rate * max(now - self._at, 0.0), self._at_rest)
        self._at = now
        if self._left < 1.0 - 1e-9:
            return False
        self._left -= 1.0
        return True
