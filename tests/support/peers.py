"""Whatever may listen at a port, also what nobody expects there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


@asynccontextmanager
async def listener(peer: Peer) -> AsyncIterator[int]:
    """Its port. Each connection is closed after what the peer does."""
    over, accepted = asyncio.Event(), list[asyncio.Task[None]]()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(asyncio.ensure_future(speak(reader, writer)))

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks = {asyncio.ensure_future(peer(reader, writer)), asyncio.ensure_future(over.wait())}
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        writer.close()
        await asyncio.gather(*tasks, writer.wait_closed(), return_exceptions=True)

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            over.set()
            server.close()
            await asyncio.gather(*accepted)
