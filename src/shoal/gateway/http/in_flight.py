"""How many requests are inside, and whether more are let in."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager

from shoal.errors import ShuttingDown


class Passage:
    """One request's way through the doors."""

    def __init__(self, doors: InFlight) -> None:
        self._in_flight, self.begun = doors, False

    def begin(self) -> None:
        """It is there as a whole, and is answered from now on."""
        if not self.begun:
            self.begun = True
            self._in_flight.inside += 1


class InFlight:
    def __init__(self) -> None:
        self.closing = False
        self.inside = 0
        self._changed = asyncio.Event()

    def check(self) -> None:
        """Raises ShuttingDown."""
        if self.closing:
            raise ShuttingDown

    @contextmanager
    def passing(self) -> Generator[Passage]:
        """A request counts as inside from its `begin` on: what has not come whole keeps no server from ending. Raises ShuttingDown."""
        self.check()
        passage = Passage(self)
        try:
            yield passage
        finally:
            if passage.begun:
                self.inside -= 1
                self._changed.set()

    def close(self) -> None:
        """Nobody is let in any more."""
        self.closing = True

    async def emptied(self) -> None:
        """Waits until nobody is inside."""
        while self.inside:
            self._changed.clear()
            await self._changed.wait()
