"""When a request of a batch is asked again: pure, time and chance are arguments."""

from __future__ import annotations

from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from random import Random

from shoal.retry import Backoff

_FIRST, _MOST, _LONGEST = 0.5, 30.0, 600.0  # seconds
_TRIES = 5
_PASSING = (429, 502, 503, 504)
_FULL = {"queue_full", "not_ready", "shutting_down"}


def retry_after(header: str | None, now: float) -> float:
    """Seconds that a server asks for, as a number or as a date; 0 where it says nothing.

    now: seconds since 1970
    """
    if not header:
        return 0.0
    try:
        seconds = float(header) if header.strip().isdigit() else parsedate_to_datetime(header).timestamp() - now
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), _LONGEST)


@dataclass
class RetryPolicy:
    """With one request. A full queue, a limit on the rate and a model that is being loaded are waited for as long as it takes; a cluster
    that fails at the request itself is asked five times, because then the request may be at fault."""

    failures: int = 0
    _backoff: Backoff = field(default_factory=lambda: Backoff(_FIRST, _MOST))

    def pause(self, status: int, code: str | None, header: str | None, now: float, rng: Random) -> float | None:
        """Seconds after which it is asked again; None: this is its answer.

        code: of the error object
        header: Retry-After
        """
        if status not in _PASSING:
            return None
        if status != 429 and code not in _FULL:
            self.failures += 1
            if self.failures >= _TRIES:
                return None
        return max(self._backoff.next(rng), retry_after(header, now))

    def unreachable(self, rng: Random) -> float:
        """Seconds after which a server is tried again that gave no answer."""
        return self._backoff.next(rng)
