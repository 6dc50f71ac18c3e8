"""What the balancer tells those who watch it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Generic

from shoal.serving.balancing.replica_state import R


class Move(enum.StrEnum):
    EJECTED = "ejected"
    PROBED = "probed"
    """Its time is over; a few requests will show whether it is well."""
    BACK = "back"
    PAUSED = "paused"
    """It said that it is busy."""


@dataclass(frozen=True)
class HealthChange(Generic[R]):
    replica: R
    at: float
    move: Move
    reason: str
    until: float = 0.0
    """When it will be looked at again, if it takes no requests now."""


@dataclass(frozen=True)
class NoReplica:
    """Why no replica could be chosen: how many there are, and how many of them are out for each reason (the first that holds)."""

    known: int
    tried: int
    draining: int
    ejected: int
    probed: int
    """Have as many probes in flight as they may."""
    busy: int
    retries_spent: bool
    """Some could be, but too many requests were sent to a further replica already."""
    wait: float | None
    """Seconds until one of them may take requests again; None: nobody knows."""

    def __str__(self) -> str:
        if not self.known:
            return "there are no replicas"
        counts = {
            "tried": self.tried,
            "draining": self.draining,
            "ejected": self.ejected,
            "on probation": self.probed,
            "busy": self.busy,
        }
        out = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        noun = "replica" if self.known == 1 else "replicas"
        if self.retries_spent:
            return f"too many requests failed on their first replica to send this one to another (of {self.known} {noun}: {out})"
        return f"none of {self.known} {noun} can take it: {out}"
