"""The chunks of one request, read as they arrive: shared by the streams of a driver and of a worker."""

from __future__ import annotations

import asyncio
from typing import Self

from shoal.request import Request, TokenChunk


class ChunkStream:
    """The producer puts chunks; the consumer ends a choice, or closes the rest."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._open = set(range(request.n))
        """Choices that are not finished."""
        self._items: asyncio.Queue[TokenChunk | Exception | None] = asyncio.Queue()

    def put(self, item: TokenChunk | Exception) -> None:
        self._items.put_nowait(item)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenChunk:
        """Raises the error that was put, if any: it ended the stream."""
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
        """Ends one choice from this side; no more of its chunks are delivered."""
        self._open.discard(choice)
        self._items.put_nowait(None)  # wakes a reader that waits for a chunk of it

    def close(self) -> None:
        """Cancels the rest; a waiting reader learns that no more chunks come."""
        self._open.clear()
        self._items.put_nowait(None)
