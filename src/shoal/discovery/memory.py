"""Discovery inside one process, for tests and demos: a board that registries share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from shoal.discovery.advert import Advert, check_name
from shoal.discovery.base import check_update, choose, nothing_found
from shoal.discovery.topology import Topology
from shoal.errors import ClusterError


class Board:
    """The published adverts, by cluster."""

    def __init__(self) -> None:
        self.adverts: dict[str, Advert] = {}
        self._changed = asyncio.Event()

    def put(self, advert: Advert) -> None:
        self.adverts[advert.cluster] = advert
        self._stir()

    def drop(self, cluster: str) -> None:
        self.adverts.pop(cluster, None)
        self._stir()

    def _stir(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def change(self) -> None:
        """Returns at the next change."""
        await self._changed.wait()


class MemoryRegistry:
    def __init__(self, board: Board) -> None:
        self._board = board
        self._advert: Advert | None = None

    async def announce(self, advert: Advert) -> None:
        held = self._board.adverts.get(advert.cluster)
        if held is not None and held.address != advert.address:
            raise ClusterError(f"a cluster named {advert.cluster} is already announced at {held.address}; choose another name")
        self._advert = advert
        self._board.put(advert)

    async def update(self, advert: Advert) -> None:
        check_update(self._advert, advert)
        self._advert = advert
        self._board.put(advert)

    def show(self, look: Callable[[], Topology]) -> None:
        """Does nothing."""

    async def withdraw(self) -> None:
        if self._advert is not None:
            self._board.drop(self._advert.cluster)
            self._advert = None

    async def find(self, cluster: str | None, timeout: float) -> Advert:
        if cluster is not None:
            check_name(cluster)
        try:
            async with asyncio.timeout(timeout):
                while (found := choose(self._board.adverts.values(), cluster)) is None:
                    await self._board.change()
                return found
        except TimeoutError:
            raise nothing_found(cluster, "in this process", timeout, self._board.adverts.values()) from None

    async def close(self) -> None:
        await self.withdraw()
