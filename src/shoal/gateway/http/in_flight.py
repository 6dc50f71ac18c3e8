"""How many requests are inside, and whether more are admitted."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager

from shoal.errors import ShuttingDown


class Passage:
    """One request's passage through the server."""

    def __init__(self, doors: InFlight) -> None:
        self._in_flight, self.begun = doors, False

    def begin(self) -> None:
        """The request is complete; from now on it counts as inside."""
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
        """A request counts as inside from its `begin` on: an incomplete request does not keep the server from ending. Raises
        ShuttingDown."""
        self.check()
        passage = Passage(self)
        try:
            yield passage
        finally:
            if passage.begun:
                self.inside -= 1
                self._changed.set()

    def close(self) -> None:
        """Admits no more requests."""
        self.closing = True

    async def emptied(self) -> None:
        """Waits until no request is inside."""
        while self.inside:
            self._changed.clear()
            await self._changed.wait()
