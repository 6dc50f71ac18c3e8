"""What the status of another server's answer says: of that server, and of the request."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from shoal.serving.balancing.inquiry import Ending

_LONGEST_PAUSE = 60.0
"""Seconds for which a server is believed that it is busy."""


class Cause(enum.StrEnum):
    """Why the request may be sent to another server."""

    BUSY = "busy"
    BROKEN = "broken"
    """It cannot answer requests now."""
    LOCKED_OUT = "locked out"
    """It does not take this server's key, or its account there has no credit."""
    WITHOUT_ENDPOINT = "without endpoint"
    WITHOUT_MODEL = "without model"
    LOOP = "loop"
    """It would have sent the request to a server that had it before."""
    ASTRAY = "astray"
    """It says that it is somewhere else."""


_ENDINGS = {
    Cause.BUSY: Ending.BUSY,
    Cause.WITHOUT_ENDPOINT: Ending.CANCELLED,
    Cause.WITHOUT_MODEL: Ending.CANCELLED,
    Cause.LOOP: Ending.CANCELLED,
}
"""For the other causes a server is at fault."""


@dataclass(frozen=True)
class Verdict:
    """cause: None: the answer is one for the client, whether it is a success or the client's own mistake. pause: seconds for which the
    server is to be left alone, if it says so."""

    cause: Cause | None = None
    pause: float | None = None

    @property
    def ending(self) -> Ending:
        return Ending.SERVED if self.cause is None else _ENDINGS.get(self.cause, Ending.FAILED)


def pause_of(retry_after: str | None) -> float | None:
    """Seconds in a Retry-After header; None for a date, or anything else."""
    try:
        seconds = float(retry_after or "")
    except ValueError:
        return None
    return min(seconds, _LONGEST_PAUSE) if seconds > 0 and math.isfinite(seconds) else None


def verdict(status: int, code: str | None = None, retry_after: str | None = None) -> Verdict:
    """code: of the error object; None: it does not say what it is about. Nothing of the answer has been passed on yet."""
    pause = pause_of(retry_after)
    if status == 429 or (status in (503, 529) and pause is not None):
        return Verdict(Cause.BUSY, pause)
    if status == 508:
        return Verdict(Cause.LOOP)
    if status in (401, 402, 403, 407):
        return Verdict(Cause.LOCKED_OUT)
    if status == 404 and code == "model_not_found":
        return Verdict(Cause.WITHOUT_MODEL)
    if status == 404 and code is not None:
        return Verdict()  # it is about something else that the client named
    if status in (404, 405, 501):
        return Verdict(Cause.WITHOUT_ENDPOINT)
    if status >= 500 or status == 408:
        return Verdict(Cause.BROKEN)
    if not 200 <= status < 300 and status < 400:
        return Verdict(Cause.ASTRAY)
    return Verdict()
