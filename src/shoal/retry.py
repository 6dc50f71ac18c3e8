"""When to try again. Pure: time and randomness are arguments."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random


def doubling(first: float, times: int, most: float) -> float:
    """`first`, doubled `times` times, but at most `most`."""
    return min(first * 2.0 ** min(times, 64), most)


@dataclass
class Backoff:
    """Delays that double from `first` to `most` seconds, each drawn from its upper half so that peers do not retry in step."""

    first: float
    most: float
    tries: int = 0

    def next(self, rng: Random) -> float:
        ceiling = doubling(self.first, self.tries, self.most)
        self.tries += 1
        return ceiling * (0.5 + 0.5 * rng.random())


@dataclass
class Breaker:
    """A peer that failed `limit` times in a row is left alone for `cool` seconds; then one attempt decides."""

    limit: int = 5
    cool: float = 5.0
    _failures: int = 0
    _until: float = field(default=float("-inf"))

    def wait(self, now: float) -> float:
        """Seconds until the peer may be tried again; 0: now."""
        return max(self._until - now, 0.0)

    def failed(self, now: float) -> None:
        self._failures += 1
        if self._failures >= self.limit:
            self._until = now + self.cool

    def succeeded(self) -> None:
        self._failures, self._until = 0, float("-inf")
