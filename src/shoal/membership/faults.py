"""Routes that fail, and who is left out for it."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.membership.member import Member

_TRIES = 3  # failures in a row, after which whoever is at fault is left out


class Faults:
    """Failures since a route was last sound."""

    def __init__(self) -> None:
        self._count = 0

    def too_often(self) -> bool:
        """One more failure: whether they are too many now, and someone is to be left out."""
        self._count = (self._count + 1) % (_TRIES + 1)
        return self._count == 0

    def forget(self) -> None:
        """A route is sound."""
        self._count = 0


def blame_one(suspects: Sequence[Member], reason: str, now: float) -> None:
    """Who of them is at fault is not known: the one that was left out least often is next."""
    if suspects:
        min(suspects, key=lambda member: member.failures).blame(reason, now)
