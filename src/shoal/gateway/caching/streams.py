"""The streams of an answer that is kept, and of one that is given again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Self

from shoal.gateway.engine import Stream
from shoal.request import Request, TokenChunk
from shoal.serving.response_cache import Recording

_AT_ONCE = 16  # chunks between turns for others


class Replay:
    """A gateway.engine.Stream of chunks that are there already."""

    def __init__(self, chunks: Sequence[TokenChunk]) -> None:
        self._chunks, self._at = chunks, 0
        self._ended: set[int] = set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenChunk:
        if self._at % _AT_ONCE == _AT_ONCE - 1:
            await asyncio.sleep(0)
        while self._at < len(self._chunks):
            chunk = self._chunks[self._at]
            self._at += 1
            if chunk.choice not in self._ended:
                return chunk
        raise StopAsyncIteration

    def end_choice(self, choice: int) -> None:
        self._ended.add(choice)

    def close(self) -> None:
        self._chunks = ()


class Recorded:
    """A gateway.engine.Stream that records another."""

    def __init__(self, stream: Stream, request: Request, over: Callable[[], Awaitable[None]]) -> None:
        """over: awaited when the stream has ended without an error, before its reader is told"""
        self.recording = Recording(request)
        self._stream, self._over = stream, over
        self.over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenChunk:
        try:
            chunk = await anext(self._stream)
        except StopAsyncIteration:
            if not self.over:
                self.over = True
                await self._over()
            raise
        self.recording.came(chunk)
        return chunk

    def end_choice(self, choice: int) -> None:
        self.recording.ended(choice)
        self._stream.end_choice(choice)

    def close(self) -> None:
        self._stream.close()
