"""A lease: the right to lead a cluster, granted for a duration to one head at a time.

What makes it safe: its keeper counts a grant's duration from when it grants it, and whoever gets it counts from before he asked. So
he stops before the keeper grants it to another, whatever their clocks show, as long as these run equally fast but for a margin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

DURATION = 10.0  # seconds


@dataclass(frozen=True)
class Grant:
    """term:  greater than that of every grant before for this cluster, from 1; survives a restart of the keeper whose store is durable
    until: by this process's clock for leases, counted from before the request was sent: the grant lasts at least until then
    """

    term: int
    until: float


@dataclass(frozen=True)
class Holder:
    """Who leads, as the keeper knows it. address: how others reach that head."""

    address: str
    term: int


class Lease(Protocol):
    """One cluster's lease, seen from one head. Every request raises LeaseUnreachable where the keeper does not answer, and ConfigError
    where it refuses this head's password or certificate. A request may be cancelled; the keeper may have carried it out.

    duration: seconds for which it is granted
    """

    duration: float

    async def acquire(self, address: str) -> Grant | None:
        """The lease, under a new term, for the head that others reach at `address`; None if another holds it. Whoever holds it already,
        perhaps because the answer was lost, gets it again."""
        ...

    async def renew(self) -> Grant | None:
        """The grant that was acquired last, for another duration and with the same term; None if it is lost."""
        ...

    async def release(self) -> None:
        """Lets others have it at once; does nothing if it is not held."""
        ...

    async def holder(self) -> Holder | None:
        """None: nobody."""
        ...

    async def close(self) -> None: ...
