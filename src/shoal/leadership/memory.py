"""A lease within one process, for simulations and tests."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from shoal.errors import LeaseUnreachable
from shoal.leadership.clock import elapsed
from shoal.leadership.lease import DURATION, Grant, Holder
from shoal.leadership.tenure import Tenure


class MemoryKeeper:
    """What the leases of one cluster's heads have in common. Make it unreachable by setting `reachable`."""

    def __init__(self, now: Callable[[], float] = elapsed) -> None:
        self.now = now
        self.tenure = Tenure()
        self.reachable = True
        self.owners = itertools.count(1)


class MemoryLease:
    def __init__(self, keeper: MemoryKeeper, duration: float = DURATION, now: Callable[[], float] = elapsed) -> None:
        """now: the head's own clock."""
        self.duration = duration
        self._keeper, self._now = keeper, now
        self._owner = f"head {next(keeper.owners)}"
        self._term = 0

    async def acquire(self, address: str) -> Grant | None:
        sent, tenure = self._now(), self._asked()
        if not tenure.acquire(self._owner, address, 0, self.duration, self._keeper.now()):
            return None
        self._term = tenure.term
        return Grant(self._term, sent + self.duration)

    async def renew(self) -> Grant | None:
        sent, tenure = self._now(), self._asked()
        if not tenure.renew(self._owner, self._term, self.duration, self._keeper.now()):
            return None
        return Grant(self._term, sent + self.duration)

    async def release(self) -> None:
        self._asked().release(self._owner, self._term)

    async def holder(self) -> Holder | None:
        tenure = self._asked()
        return Holder(tenure.address, tenure.term) if tenure.held(self._keeper.now()) else None

    async def close(self) -> None:
        pass

    def _asked(self) -> Tenure:
        """Raises LeaseUnreachable."""
        if not self._keeper.reachable:
            raise LeaseUnreachable("the keeper in memory", "it is cut off")
        return self._keeper.tenure
