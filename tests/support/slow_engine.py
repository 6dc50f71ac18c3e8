"""An engine that says one letter at a time, when it is told to."""

from __future__ import annotations

import asyncio

from shoal.request import Request, TokenChunk
from tests.support.engine import FakeEngine, Item, ScriptedStream, says


class SlowEngine(FakeEngine):
    def submit(self, request: Request) -> ScriptedStream:
        stream = Slowly(request, says("Hello")(request))
        self.streams.append(stream)
        return stream

    def say(self, count: int) -> None:
        for stream in self.streams:
            assert isinstance(stream, Slowly)
            for _ in range(count):
                stream.let.release()


class Slowly(ScriptedStream):
    """Says one thing each time that it is let."""

    def __init__(self, request: Request, items: list[Item]) -> None:
        super().__init__(request, items, True)
        self.let = asyncio.Semaphore(0)

    async def __anext__(self) -> TokenChunk:
        await self.let.acquire()
        return await super().__anext__()
