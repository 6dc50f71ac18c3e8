"""How many requests are inside, and whether more are let in."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager

from shoal.errors import ShuttingDown


class Doors:
    def __init__(self) -> None:
        self.closing = False
        self.inside = 0
        self._changed = asyncio.Event()

    def check(self) -> None:
        """Raises ShuttingDown."""
        if self.closing:
            raise ShuttingDown

    @contextmanager
    def passing(self) -> Generator[None]:
        """Raises ShuttingDown."""
        self.check()
        self.inside += 1
        try:
            yield
        finally:
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
