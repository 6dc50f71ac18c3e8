"""A receiver of webhooks on loopback, over real sockets, that does what a test says: answers, hangs, closes, or answers slowly."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass
class Delivery:
    headers: dict[str, str]
    body: str


@dataclass
class Receiver:
    """answers: one for each request; the last is for all others. 'hang', 'close', 'slow' (a byte at a time, without end), 'held'
    (204 when `release` is set), or a status with headers."""

    answers: list[str] = field(default_factory=lambda: ["204"])
    deliveries: list[Delivery] = field(default_factory=list[Delivery])
    port: int = 0
    scheme: str = "http"
    release: asyncio.Event = field(default_factory=asyncio.Event)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"{self.scheme}://localhost:{self.port}/hook?token=hush"

    async def until(self, fulfilled: Callable[[], bool]) -> None:
        while not fulfilled():
            self._news.clear()
            await self._news.wait()

    async def count(self, number: int) -> list[Delivery]:
        await self.until(lambda: len(self.deliveries) >= number)
        return self.deliveries

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                lines = head.split("\r\n")[1:-2]
                headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
                body = await reader.readexactly(int(headers["content-length"]))
                answer = self.answers[min(len(self.deliveries), len(self.answers) - 1)]
                self.deliveries.append(Delivery(headers, body.decode()))
                self._news.set()
                if answer == "close":
                    return
                if answer == "hang":
                    await reader.read()
                    return
                if answer == "slow":
                    for byte in b"HTTP/1.1 204 No Content\r\nx: " + b"x" * 10_000_000:
                        writer.write(bytes([byte]))
                        await writer.drain()
                        await asyncio.sleep(0.01)
                if answer == "held":
                    await self.release.wait()
                    answer = "204"
                status, *more = answer.split("\n")
                writer.write("\r\n".join([f"HTTP/1.1 {status} X", "content-length: 0", *more, "", ""]).encode())
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


@asynccontextmanager
async def receiver(*answers: str, tls: ssl.SSLContext | None = None) -> AsyncGenerator[Receiver]:
    there = Receiver([*answers] or ["204"], scheme="https" if tls else "http")
    server = await asyncio.start_server(there.serve, "localhost", 0, ssl=tls)
    there.port = server.sockets[0].getsockname()[1]
    try:
        yield there
    finally:
        server.close()
