"""Whether a replica is well, from how its requests end."""

from __future__ import annotations

import enum
from collections import deque

from shoal.retry import doubling
from shoal.serving.balancing.limits import BalancerLimits

_BUCKETS = 10
_FORGIVEN = 10
"""A replica that was well for so many times its last ejection begins with the shortest again."""


class OutcomeWindow:
    """How many requests were served and how many failed in the last seconds, to a tenth of these."""

    def __init__(self, seconds: float) -> None:
        self._width = seconds / _BUCKETS
        self._buckets: deque[list[int]] = deque(maxlen=_BUCKETS)
        """[number of the bucket, served, failed]"""

    def add(self, served: bool, now: float) -> None:
        number = int(now / self._width)
        if not self._buckets or self._buckets[-1][0] < number:
            self._buckets.append([number, 0, 0])
        self._buckets[-1][1 if served else 2] += 1

    def counts(self, now: float) -> tuple[int, int]:
        """Served and failed."""
        oldest = int(now / self._width) - _BUCKETS
        served = failed = 0
        for number, good, bad in self._buckets:
            if number > oldest:
                served, failed = served + good, failed + bad
        return served, failed

    def clear(self) -> None:
        self._buckets.clear()


class Circuit(enum.StrEnum):
    CLOSED = "closed"
    """It takes requests."""
    OPEN = "open"
    """It takes none until its time is over."""
    HALF_OPEN = "half-open"
    """It takes a few at a time, which show whether it is well."""


class CircuitBreaker:
    """One replica's.

        CLOSED ── eject ──▶ OPEN ── its time is over (`wake`) ──▶ HALF_OPEN ── `probes` served ──▶ CLOSED
                             ▲                                        │
                             └────────────── one failed ──────────────┘

    It says when it should be ejected (`symptom`). Whether it is, is decided where the others are known.
    """

    def __init__(self, limits: BalancerLimits) -> None:
        self.state = Circuit.CLOSED
        self.until = 0.0
        """While open: the end of its time, in seconds."""
        self.probing = 0
        """Probes in flight."""
        self.outcomes = OutcomeWindow(limits.window)
        self._limits = limits
        self._row = 0
        """Failures since the last request that was served."""
        self._well = 0
        """Probes served since it is half-open."""
        self._ejections = 0
        self._closed_at = float("-inf")

    @property
    def admits(self) -> bool:
        return self.state is Circuit.CLOSED or (self.state is Circuit.HALF_OPEN and self.probing < self._limits.probes)

    def count(self, served: bool, now: float) -> None:
        """A request has ended."""
        self.outcomes.add(served, now)
        self._row = 0 if served else self._row + 1

    def symptom(self, now: float) -> str:
        """Why it should be ejected; empty: it should not."""
        if self._row >= self._limits.failures:
            return f"{self._row} requests in a row failed"
        served, failed = self.outcomes.counts(now)
        if served + failed >= self._limits.enough and failed >= self._limits.failure_rate * (served + failed):
            return f"{failed} of its last {served + failed} requests failed"
        return ""

    def eject(self, now: float) -> None:
        if self.state is Circuit.CLOSED and now - self._closed_at > _FORGIVEN * self._seconds(self._ejections - 1):
            self._ejections = 0
        self.state, self.until = Circuit.OPEN, now + self._seconds(self._ejections)
        self._ejections += 1

    def wake(self, now: float) -> bool:
        """Whether it has become half-open."""
        if self.state is not Circuit.OPEN or now < self.until:
            return False
        self.state, self._well = Circuit.HALF_OPEN, 0
        return True

    def probed(self) -> bool:
        """One more probe was served. Whether these were enough."""
        self._well += 1
        return self._well >= self._limits.probes

    def close(self, now: float) -> None:
        """What was before counts no longer."""
        self.state, self._closed_at, self._row = Circuit.CLOSED, now, 0
        self.outcomes.clear()

    def _seconds(self, ejections: int) -> float:
        return doubling(self._limits.ejection, max(ejections, 0), self._limits.longest_ejection)
