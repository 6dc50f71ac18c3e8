"""Routes that fail, and which node is left out because of it."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.membership.holding import Holding

_TRIES = 3  # failures in a row before the node at fault is left out


class Faults:
    """Failures since the last sound route."""

    def __init__(self) -> None:
        self._count = 0

    def too_often(self) -> bool:
        """Counts one more failure. Returns whether there are too many now, so that a node must be left out."""
        self._count = (self._count + 1) % (_TRIES + 1)
        return self._count == 0

    def forget(self) -> None:
        """Call it when a route is sound."""
        self._count = 0


def blame_one(suspects: Sequence[Holding], reason: str, now: float) -> None:
    """If nobody knows which node is at fault, blames the one that was left out least often."""
    if suspects:
        min(suspects, key=lambda holding: holding.failures).blame(reason, now)
