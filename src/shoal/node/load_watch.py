"""What a model is asked for and how soon it answers, over the last minute: what an autoscaler wants to know beside what a scheduler tells."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import ceil

WINDOW = 60.0
"""Seconds."""
_LEAST = 15.0
"""Seconds that arrivals are spread over at least: two in the first second are no rate."""
_MOST = 4096
"""First tokens of the window that are kept: beyond, the latest stand for all."""


@dataclass
class LoadWatch:
    """Of one model. Times: seconds, by any clock that only goes forward."""

    arrived: int = 0
    """Sequences that were asked for."""
    entered: int = 0
    """Of these, those that were not refused."""
    _counts: deque[tuple[float, int]] = field(default_factory=deque[tuple[float, int]])
    """Arrivals by the moment of a look, the last one before the window first."""
    _first_tokens: deque[tuple[float, float]] = field(default_factory=lambda: deque[tuple[float, float]](maxlen=_MOST))
    _held: deque[tuple[float, float, int]] = field(default_factory=deque[tuple[float, float, int]])
    """Slot-seconds since it began, and sequences that had ended, by the moment of a look."""
    _looked: float | None = None
    _taken: float = 0.0
    slot_seconds: float = 0.0
    """For which a sequence takes a slot, on average; 0: none has ended yet."""

    def first_token(self, now: float, seconds: float) -> None:
        self._first_tokens.append((now, seconds))

    def look(self, now: float, running: int, inside: int) -> None:
        """Every few seconds. running: sequences that take a slot; inside: those that run or wait."""
        self._taken += running * (now - self._looked) if self._looked is not None else 0.0
        self._looked = now
        self._counts.append((now, self.arrived))
        self._held.append((now, self._taken, self.entered - inside))
        for kept in (self._counts, self._held):
            while len(kept) > 1 and kept[1][0] <= now - WINDOW:
                kept.popleft()
        while self._first_tokens and self._first_tokens[0][0] < now - WINDOW:
            self._first_tokens.popleft()
        taken, ended = self._taken - self._held[0][1], self._held[-1][2] - self._held[0][2]
        if ended > 0 and taken > 0:
            self.slot_seconds = taken / ended

    @property
    def per_second(self) -> float:
        """Arrivals."""
        if len(self._counts) < 2:
            return 0.0
        (first, before), (last, now) = self._counts[0], self._counts[-1]
        return (now - before) / max(last - first, _LEAST)

    @property
    def first_token_p95(self) -> float | None:
        """Seconds; None: there was none."""
        seconds = sorted(seconds for _, seconds in self._first_tokens)
        return seconds[ceil(0.95 * len(seconds)) - 1] if seconds else None
