"""Engines behind a gateway port, with gateways in this process: the real sockets, TLS and files, and engines without a model."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from shoal import __version__
from shoal.config import ApiSettings
from shoal.gateway.engines import ServedEngines
from shoal.gateway.workers.client import RemoteEngines
from shoal.gateway.workers.greeting import greet
from shoal.gateway.workers.home import HeadHome
from shoal.gateway.workers.server import EngineServer
from shoal.launch.gateway_door import GatewayDoor
from shoal.launch.tokenizers import cut, opened
from shoal.security.authority import Authority
from shoal.security.certificates import Role, server_name
from shoal.text.tokenizer_parts import TokenizerFiles
from tests.support.vocabulary_files import gguf

API = "http://192.0.2.1:8000"


class Door:
    """A head; `remote` are its gateways. protected: with certificates."""

    def __init__(self, engines: ServedEngines, folder: Path, protected: bool = True) -> None:
        self.engines, self.folder = engines, folder
        self.settings = ApiSettings(data=str(folder / "api"))
        self.authority = Authority.open(folder / "authority") if protected else None
        self.home = HeadHome(self.settings, lambda name: cut(self.files(name)), API)
        self.server = EngineServer(engines, self.files, self.settings, home=self.home)
        self.door = GatewayDoor(self.server, "127.0.0.1", 0, self._context(Role.HEAD, serves=True))
        self._running: dict[RemoteEngines, asyncio.Task[None]] = {}

    def files(self, model: str) -> TokenizerFiles:
        path = self.folder / f"{model}.gguf"
        return TokenizerFiles(path if path.exists() else gguf(path))

    def _context(self, role: Role, serves: bool = False) -> ssl.SSLContext | None:
        if self.authority is None:
            return None
        credentials = self.authority.credentials(role, "x")
        return credentials.server_context() if serves else credentials.client_context()

    @property
    def port(self) -> int:
        return int(self.door._server.sockets[0].getsockname()[1])

    async def connection(self, role: Role = Role.GATEWAY) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """One that has said nothing yet."""
        context = self._context(role)
        more: dict[str, Any] = {} if context is None else {"ssl": context, "server_hostname": server_name(Role.HEAD)}
        return await asyncio.open_connection("127.0.0.1", self.port, **more)

    async def join(self, name: str = "g") -> RemoteEngines:
        """A gateway that has been welcomed, with a cache of its name."""
        reader, writer = await self.connection()
        await greet(reader, writer, __version__)
        gateway = await RemoteEngines.join(reader, writer, opened, name, self.folder / "caches" / name)
        self._running[gateway] = asyncio.ensure_future(gateway.run())
        return gateway

    async def lose(self, gateway: RemoteEngines) -> None:
        """As when its machine is gone."""
        gateway._channel.abort()
        await self._running.pop(gateway)

    async def end(self) -> None:
        for gateway in self._running:
            await gateway.close()
        await asyncio.gather(*self._running.values())
        await self.door.close()
        await self.server.close()


@asynccontextmanager
async def door(engines: ServedEngines, folder: Path, protected: bool = True) -> AsyncIterator[Door]:
    made = Door(engines, folder, protected)
    await made.server.start(folder / "engine")
    await made.door.start()
    try:
        async with asyncio.timeout(60):
            yield made
    finally:
        await made.end()


def run(
    engines: Callable[[], ServedEngines],
    folder: Path,
    work: Callable[[Door], Awaitable[Any]],
    protected: bool = True,
    loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
) -> None:
    """The work with a head of these engines, which are made in its event loop."""

    async def go() -> None:
        async with door(engines(), folder, protected) as made:
            await work(made)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(go())
