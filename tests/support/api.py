"""The API on a real socket in this process, and clients that speak bytes to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any, cast

import uvloop

from shoal.config import ApiSettings
from shoal.gateway.auth.keyring import Keyring
from shoal.gateway.engine import Engine
from shoal.gateway.server import ApiServer, listening
from shoal.gateway.service import Service
from tests.support.app import app_of
from tests.support.http import CHAT, eventually

HI = {"messages": [{"role": "user", "content": "Hi"}]}


class Wire:
    """One client's connection, in bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self._writer = reader, writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self) -> tuple[int, bytes]:
        """The next response's status and body."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
        if "content-length" in headers:
            body = await self.reader.readexactly(int(headers["content-length"]))
        else:
            body = b""
            while size := int(await self.reader.readline(), 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readline()
        return int(lines[0].split()[1]), body

    async def rest(self) -> bytes:
        """All that comes until the server hangs up, however it does that."""
        out = b""
        try:
            while part := await self.reader.read(65536):
                out += part
        except ConnectionError:
            pass
        return out

    def stop_reading(self) -> None:
        """Nothing is taken from the kernel any more."""
        self._incoming.pause_reading()

    def read_on(self) -> None:
        self._incoming.resume_reading()

    @property
    def _incoming(self) -> asyncio.Transport:
        """A stream's writer is annotated with a transport that writes alone; that of a socket reads, too. uvloop's has no class of asyncio's."""
        return cast("asyncio.Transport", self._writer.transport)

    def hang_up(self) -> None:
        self._writer.transport.abort()

    @property
    def closed(self) -> bool:
        return self._writer.is_closing()


def post(body: dict[str, Any] | bytes, path: str = CHAT, *headers: str) -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {len(raw)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + raw


class Api:
    def __init__(self, server: ApiServer, service: Service) -> None:
        self.server, self.service = server, service
        self._skipped = 0.0
        self._wires: list[Wire] = []

    async def connect(self, first: bytes = b"", *, window: int = 65536) -> Wire:
        """window: bytes that this end takes before somebody reads them."""
        wire = Wire(*await asyncio.open_connection("127.0.0.1", self.server.port, limit=window))
        self._wires.append(wire)
        if first:
            await wire.send(first)
        return wire

    async def status(self) -> int:
        """Of a small request on a connection of its own: others are served."""
        wire = await self.connect(post({**HI, "max_tokens": 2}))
        status, _ = await wire.answer()
        wire.hang_up()
        return status

    async def pass_time(self, seconds: int) -> None:
        """For the patience with clients, second by second, in each of which everybody has a turn."""
        for _ in range(seconds):
            await asyncio.sleep(0.002)
            self._skipped += 1
            self.server.connections.sweep(monotonic() + self._skipped)

    @property
    def open(self) -> int:
        return len(self.server.connections.open)

    @property
    def asking(self) -> int:
        """Connections whose request has not come as a whole."""
        return sum(connection.asking for connection in self.server.connections.open)

    async def until_open(self, connections: int) -> None:
        await eventually(lambda: self.open == connections)

    def forget(self) -> None:
        """Wires that were hung up by whoever made them."""
        self._wires = [wire for wire in self._wires if not wire.closed]

    def end(self) -> None:
        for wire in self._wires:
            wire.hang_up()


@asynccontextmanager
async def api(
    engine: Engine, serve: Callable[[ApiServer], Coroutine[Any, Any, None]] = ApiServer.serve, **settings: Any
) -> AsyncGenerator[Api]:
    """Without keys. Fails where a task or a connection is left at the end. serve: what runs the server."""
    before = asyncio.all_tasks()
    with TemporaryDirectory() as folder, listening("127.0.0.1", 0) as address:
        chosen = ApiSettings(**{"data": folder, **settings})
        app = app_of(engine, chosen, Keyring(None))
        server = ApiServer(app, address, chosen)
        serving = asyncio.ensure_future(serve(server))
        made = Api(server, app.state.service)
        await eventually(lambda: server.started)
        try:
            yield made
        finally:
            made.end()
            server.stop()
            await serving
    await eventually(lambda: made.open == 0)
    await eventually(lambda: asyncio.all_tasks() <= before)


def run(work: Callable[[], Awaitable[None]], bound: float = 60.0) -> None:
    """On the event loop that the product runs on."""

    async def go() -> None:
        async with asyncio.timeout(bound):
            await work()

    uvloop.run(go())


GET = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"


def error_of(body: bytes) -> dict[str, Any]:
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error
