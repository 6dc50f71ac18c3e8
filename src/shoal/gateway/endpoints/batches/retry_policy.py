"""When a request of a batch is asked again. Pure: time and randomness are arguments."""

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
    """Seconds that a server asks for, given as a number or as a date; 0 if it asks for none.

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
    """The retries of one request. A full queue, a rate limit and a model that is being loaded are waited for as long as it
    takes. If the cluster fails at the request itself, it is asked five times at most, because the request may be the cause."""

    failures: int = 0
    _backoff: Backoff = field(default_factory=lambda: Backoff(_FIRST, _MOST))

    def pause(self, status: int, code: str | None, header: str | None, now: float, rng: Random) -> float | None:
        """Seconds until it is asked again; None: this is its answer.

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
        """Seconds until a server that gave no answer is tried again."""
        return self._backoff.next(rng)
