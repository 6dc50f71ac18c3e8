"""The chunks of one request, read as they come: what the streams of a driver and of a worker share."""

from __future__ import annotations

import asyncio
from typing import Self

from shoal.request import Request, TokenChunk


class ChunkStream:
    """The producer puts chunks; the consumer ends a choice, or closes the rest."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._open = set(range(request.n))
        """Choices of which more is to come."""
        self._items: asyncio.Queue[TokenChunk | Exception | None] = asyncio.Queue()

    def put(self, item: TokenChunk | Exception) -> None:
        self._items.put_nowait(item)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenChunk:
        """Raises the error that was put, if one was: the stream has ended with it."""
        while self._open:
            item = await self._items.get()
            if isinstance(item, Exception):
                self.close()
                raise item
            if item is None or item.choice not in self._open:
                continue  # closed, or of a choice that was ended from this side
            if item.finish is not None:
                self._open.discard(item.choice)
            return item
        self.close()
        raise StopAsyncIteration

    def end_choice(self, choice: int) -> None:
        """Ends one choice from this side; no chunk of it comes any more."""
        self._open.discard(choice)
        self._items.put_nowait(None)  # whoever waits for a chunk of it looks again

    def close(self) -> None:
        """Cancels what is left; whoever waits for a chunk learns that none will come."""
        self._open.clear()
        self._items.put_nowait(None)
