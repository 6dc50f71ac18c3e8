"""A TCP proxy that can cut what goes through it, or make it take its time."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Link:
    """Bytes between whoever connected and the target, both ways."""

    def __init__(self, target: tuple[str, int], source: str, delay: float) -> None:
        self._target, self._source, self._delay = target, source, delay
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with contextlib.suppress(OSError):
            there, onward = await asyncio.open_connection(*self._target, local_addr=(self._source, 0))
            self._writers.append(onward)
            await asyncio.gather(self._pump(reader, onward), self._pump(there, writer))
        self.cut()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            if self._delay:
                asyncio.get_running_loop().call_later(self._delay, self._write, writer, data)
                continue
            writer.write(data)
            await writer.drain()
        await asyncio.sleep(self._delay)  # for what is on its way
        raise ConnectionError("one side has ended")

    def _write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        if not writer.is_closing():
            writer.write(data)

    def cut(self) -> None:
        """Resets both sides."""
        for writer in self._writers:
            raw = writer.get_extra_info("socket")
            if raw is not None and not writer.is_closing():
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class Proxy:
    """Listens at an address and carries what comes on to another one, by way of that first address."""

    def __init__(self, host: str, port: int, target: tuple[str, int], delay: float = 0.0) -> None:
        """delay: seconds that bytes take, each way."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._links: dict[_Link, None] = {}
        self._target, self._host, self._delay = target, host, delay
        self._server = self._do(asyncio.start_server(self._accept, host, port))

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    @property
    def port(self) -> int:
        return int(self._server.sockets[0].getsockname()[1])

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(self._target, self._host, self._delay)
        self._links[link] = None
        try:
            await link.serve(reader, writer)
        finally:
            del self._links[link]

    def cut(self) -> int:
        """Cuts the connections that there are; new ones are served. How many there were."""

        async def all_of_them() -> int:
            links = [*self._links]
            for link in links:
                link.cut()
            return len(links)

        return self._do(all_of_them())

    def close(self) -> None:
        async def everything() -> None:
            self._server.close()
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for link in [*self._links]:
                link.cut()
            await asyncio.wait(others, timeout=5) if others else None

        self._do(everything())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
