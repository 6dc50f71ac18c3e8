"""Whom a head asks for nodes, where copies of models find no room on those that are there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

import structlog

from shoal.errors import ShoalError
from shoal.retry import Backoff
from shoal.serving.node_wish import NodeWish

log = structlog.get_logger()

_FIRST, _MOST = 1.0, 60.0
"""Seconds before the second attempt, and at most before a further one."""
_REPEAT = 900.0
"""Seconds after which what was asked for is asked for again, if it is still missing."""


class NodeSource(Protocol):
    @property
    def trouble(self) -> str:
        """Why the latest attempt failed; '': it did not, or nobody wishes for nodes any more."""
        ...

    def wish(self, wish: NodeWish) -> None:
        """Only notes it; what is the same as before too."""
        ...

    async def run(self) -> None:
        """Asks, until it is cancelled."""
        ...


class NodePool(Protocol):
    """Nodes whose number is set elsewhere."""

    def count(self, nodes: Collection[str]) -> int:
        """How many of these nodes are of the pool."""
        ...

    async def at_least(self, nodes: int) -> str:
        """So many from now on, unless there are more. Returns what was done, for people. Raises ShoalError."""
        ...


@dataclass
class PoolSource:
    """Has a pool get more nodes. They are never taken away: whoever set their number decides that. most: nodes in the pool. nodes: names of
    those that are in the cluster."""

    pool: NodePool
    most: int
    nodes: Callable[[], Collection[str]]
    done: Callable[[str], object] = log.info
    """Is told what was done, in words."""
    rng: Random = field(default_factory=Random)
    trouble: str = ""

    def __post_init__(self) -> None:
        self._missing: dict[str, int] = {}
        self._there = 0
        self._asked = 0
        self._news = asyncio.Event()

    def wish(self, wish: NodeWish) -> None:
        self._missing[wish.model], self._there = wish.nodes, self.pool.count(self.nodes())
        if not self._wanted:
            self._asked, self.trouble = 0, ""
        elif self._wanted > self._asked:
            self._news.set()

    @property
    def _wanted(self) -> int:
        """Nodes that there should be; 0: as many as there are."""
        missing = sum(self._missing.values())
        return min(self._there + missing, self.most) if missing else 0

    async def run(self) -> None:
        backoff = Backoff(_FIRST, _MOST)
        while True:
            wanted = await self._due()
            try:
                self.done(await self.pool.at_least(wanted))
            except ShoalError as error:
                self.trouble = str(error) if self._wanted else ""
                await asyncio.sleep(backoff.next(self.rng))
            else:
                self.trouble = ""
                backoff.tries = 0
                self._asked = wanted

    async def _due(self) -> int:
        """The nodes that there should be, once they are more than were asked for, or it is time to ask again."""
        while (wanted := self._wanted) <= self._asked:
            self._news.clear()
            try:
                async with asyncio.timeout(_REPEAT):
                    await self._news.wait()
            except TimeoutError:
                self._asked = 0
        return wanted
