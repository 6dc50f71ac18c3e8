"""A head that wants to lead: it follows until it gets the lease, and leads until it loses it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, TypeVar

import structlog

from shoal.errors import LeaseUnreachable, LocalProtocolError, ShoalError
from shoal.leadership.clock import elapsed
from shoal.leadership.lease import Grant, Lease

log = structlog.get_logger()

T = TypeVar("T")
PERIOD = 1 / 3  # of the duration, between two renewals, or two attempts to get the lease
MARGIN = 1 / 10  # of the duration, by which a head stops before its grant ends: for clocks that run unequally fast
_ANSWER = 1 / 4  # of the duration, after which a request is given up
_TOO_SHORT = 0.001  # seconds, to wait for
_AGAIN = 1 / 10  # of the duration, after a renewal that failed


class Candidate:
    """
    address: how others reach this head
    now:     the clock that the lease counts by too
    margin:  seconds before its grant ends at which this head no longer leads; None: a tenth of the duration
    """

    def __init__(
        self, lease: Lease, address: str, now: Callable[[], float] = elapsed, rng: Random | None = None, margin: float | None = None
    ) -> None:
        self.lease, self.address = lease, address
        self._now, self._rng = now, rng or Random()
        self.period = PERIOD
        """Share of the lease's duration between two attempts to get it: less when the head that had it seems to be lost."""
        self._margin = lease.duration * MARGIN if margin is None else margin
        self._grant: Grant | None = None
        self._resignations = 0
        self._asking: set[asyncio.Task[Any]] = set()
        """Requests that are under way, or were given up and are not over yet."""

    @property
    def term(self) -> int | None:
        """Of the grant that this head has, or had and has not noticed the end of; None if it follows."""
        return self._grant.term if self._grant is not None else None

    def leads(self, now: float) -> bool:
        """Whether this head may act as the leader at `now`. To be asked before whatever only a leader may do: a process that was stopped,
        or a machine that slept, leads no more when it goes on, whatever its tasks have noticed."""
        return self._grant is not None and now < self._grant.until - self._margin

    async def lead(self) -> Grant:
        """Returns when this head holds the lease, however long that takes. Raises ConfigError if the keeper will never grant it."""
        lost = False
        while True:
            resignations = self._resignations
            try:
                grant = await self._answer(self.lease.acquire(self.address))
                if self._resignations > resignations:  # what was granted may be released by now, and another head's
                    grant = None
                if lost:
                    log.warning("the lease's keeper answers again")
                    lost = False
            except LeaseUnreachable as error:
                grant = None
                if not lost:
                    log.warning("this head cannot ask for the lease; trying on", error=str(error))
                    lost = True
            self._grant = grant
            if grant is not None and self.leads(self._now()):  # an answer that took too long is worth nothing
                return grant
            self._grant = None
            await asyncio.sleep(self._about(self.period))

    async def until_lost(self) -> str:
        """Renews the grant; returns why this head no longer leads, at the latest when `leads` no longer holds."""
        if self._grant is None:
            raise LocalProtocolError("this head does not lead")
        trouble, pause = "", self._about(PERIOD)
        try:
            while True:
                await asyncio.sleep(min(pause, self._left()))
                if self._left() <= 0:
                    return self._why(trouble)
                grant = self._grant
                try:
                    renewed = await self._answer(self.lease.renew(), self._left())
                except ShoalError as error:
                    if not trouble:
                        log.warning(
                            "the lease cannot be renewed; trying on until it ends", seconds=round(self._left(), 1), error=str(error)
                        )
                    trouble, pause = str(error), self._about(_AGAIN)
                    continue
                if self._left() <= 0:  # what has ended stays so: others may have seen it
                    return self._why(trouble)
                if renewed is None or renewed.term != grant.term:
                    return "the keeper of its lease says that another head has it, or nobody"
                if trouble:
                    log.warning("the lease is renewed again")
                self._grant, trouble, pause = renewed, "", self._about(PERIOD)
        finally:
            self._grant = None

    async def resign(self) -> None:
        """Leads no longer, and lets another head have the lease at once. Raises LeaseUnreachable: then it ends by itself."""
        self._grant = None
        self._resignations += 1
        await self._answer(self.lease.release())

    async def close(self) -> None:
        """Ends what is under way; the lease is the caller's to close."""
        self._grant = None
        for task in self._asking:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)

    def _left(self) -> float:
        """Seconds for which this head may still lead; 0: it does not."""
        left = self._grant.until - self._margin - self._now() if self._grant is not None else 0.0
        return left if left > _TOO_SHORT else 0.0

    def _why(self, trouble: str) -> str:
        if self._grant is None:
            return "it resigned"
        return f"its lease ended: {trouble or 'this process was stopped, or too busy to renew it'}"

    def _about(self, share: float) -> float:
        """Seconds: that share of the duration, or up to a quarter less, so that heads do not ask in step."""
        return self.lease.duration * share * (0.75 + 0.25 * self._rng.random())

    async def _answer(self, request: Coroutine[Any, Any, T], most: float = float("inf")) -> T:
        """The keeper's answer. Does not wait longer than `most` seconds even for a client that ignores its cancellation. Raises
        LeaseUnreachable, and what the request raises."""
        seconds = min(self.lease.duration * _ANSWER, most)
        task = asyncio.create_task(request, name="lease")
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        try:
            await asyncio.wait({task}, timeout=seconds)
            if task.done():
                return task.result()
            raise LeaseUnreachable("the lease's keeper", f"no answer within {seconds:.1f} s")
        finally:
            if not task.done():
                task.add_done_callback(_given_up)
                task.cancel()


def _given_up(task: asyncio.Task[Any]) -> None:
    """What became of a request whose answer nobody waits for any more."""
    if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, ShoalError):
        log.error("a request to the lease's keeper failed", exc_info=error)
