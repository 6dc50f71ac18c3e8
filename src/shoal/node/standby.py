"""A head that does not lead: it follows the one that does, and stands for election when it has what a leader needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from shoal.errors import ClusterError, LeaseUnreachable
from shoal.leadership.candidate import PERIOD, Candidate
from shoal.leadership.lease import Grant, Lease
from shoal.node.environment import ControlLink
from shoal.node.follower import Follower, LeadsElsewhere

_LOOK = 0.05  # seconds between looks whether this head can lead
_HURRIED = 1 / 20  # of the lease's duration, between two attempts to get it when there is no head to be followed
_AGAIN = 0.2  # seconds between attempts to follow
_OTHERS_FIRST = 30.0  # seconds without a leader after which a head without a whole copy leads: those that have more had their time


class Standby:
    def __init__(
        self,
        lease: Lease,
        candidate: Candidate,
        follower: Follower,
        link: Callable[[str], ControlLink],
        *,
        leader: str = "",
        may_begin: bool = False,
        own: bool = True,
        ready: Callable[[], bool] = lambda: True,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        """
        link:      opens a conversation with the head at an address
        leader:    the address to try first; '': the holder of the lease
        may_begin: whether this head may lead without having followed another one: then what it has itself is the cluster's
        own:       whether what it has is what it led with, or nothing, and not a copy from before; such a head gives others time to lead first
        ready:     whether everything that this head needs for leading is prepared
        tell:      receives lines for the person at this machine
        """
        self.leader = leader
        """Address of the head that leads, as far as it is known; '' if it is not."""
        self._lease, self._candidate, self._follower, self._link = lease, candidate, follower, link
        self._hint, self._may_begin, self._own, self._ready, self._tell = leader, may_begin, own, ready, tell
        self._said = ""
        self._alone = 0.0
        """When there last was a head to be followed, or this one began."""

    async def until_elected(self) -> Grant:
        """Raises ConfigError: the lease's keeper, or the head that leads, does not accept this one; OSError, RemoteProtocolError: no copy
        can be kept."""
        loop = asyncio.get_running_loop()
        self._alone = loop.time()
        following, electing = loop.create_task(self._follow()), loop.create_task(self._elected())
        try:
            await asyncio.wait({following, electing}, return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                following.result()
            return electing.result()
        finally:
            following.cancel()
            electing.cancel()
            await asyncio.gather(following, electing, return_exceptions=True)

    @property
    def _able(self) -> bool:
        follower, now = self._follower, asyncio.get_running_loop().time()
        if follower.following:
            self._alone = now
        if not self._ready():
            return False
        if follower.whole or follower.following or not self._may_begin:
            return follower.whole
        return (self._own and not follower.begun) or now - self._alone >= _OTHERS_FIRST

    async def _elected(self) -> Grant:
        """Asks for the lease whenever this head could lead."""
        asking: asyncio.Task[Grant] | None = None
        try:
            while True:
                self._candidate.period = PERIOD if self._follower.following else _HURRIED
                if not self._able:
                    if asking is not None:
                        asking.cancel()
                        asking = None
                    await asyncio.sleep(_LOOK)
                    continue
                asking = asking or asyncio.get_running_loop().create_task(self._candidate.lead())
                await asyncio.wait({asking}, timeout=_LOOK)
                if asking.done():
                    return asking.result()
        finally:
            if asking is not None:
                asking.cancel()

    async def _follow(self) -> None:
        while True:
            if not self._hint:
                self._hint = await self._holder()
            if self._hint and self._hint != self._candidate.address:
                why = await self._attend(self._hint)
                if self._hint:
                    continue
                if why != self._said:
                    self._tell(f"not following any head: {why}")
                    self._said = why
            else:
                self._hint = ""
            await asyncio.sleep(_AGAIN)

    async def _attend(self, address: str) -> str:
        """Follows the head there for as long as it leads. Returns why that ended."""
        watching = asyncio.get_running_loop().create_task(self._watch(address))
        self._hint = ""
        try:
            await self._follower.follow(address, self._link(address))
            raise AssertionError("following ends with an error")
        except LeadsElsewhere as error:
            self._hint = error.address if error.address != address else ""
            return str(error)
        except ClusterError as error:
            return str(error)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _watch(self, address: str) -> None:
        """Tells when the copy is whole."""
        while not self._follower.following:  # noqa: ASYNC110 - the follower sets it whenever the head says that it leads
            await asyncio.sleep(_LOOK)
        self.leader, self._said = address, ""
        while not self._follower.whole:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK)
        self._tell(f"stands by for the head at {address}, with a copy of all that it keeps")

    async def _holder(self) -> str:
        """Address of the head that holds the lease; '' if nobody is known to."""
        try:
            holder = await self._lease.holder()
        except LeaseUnreachable:
            return ""
        return holder.address if holder is not None else ""
