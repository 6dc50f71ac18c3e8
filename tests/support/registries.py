"""The places where clusters can be announced, for the contract suite."""

from __future__ import annotations

import asyncio
import ipaddress
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import redis.asyncio
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from shoal.discovery.advert import Advert
from shoal.discovery.base import Registry
from shoal.discovery.mdns import MdnsRegistry
from shoal.discovery.memory import Board, MemoryRegistry
from shoal.discovery.redis import PREFIX, RedisRegistry


class Place:
    """Registries opened here see each other, and nothing of another place. All are closed in the end."""

    def __init__(self, make: Callable[[], Registry]) -> None:
        self._make = make
        self._opened: list[Registry] = []

    def open(self) -> Registry:
        self._opened.append(registry := self._make())
        return registry

    async def litter(self) -> None:
        """Leaves something under the name `junk` that is no advert."""
        raise NotImplementedError

    async def close(self) -> None:
        for registry in self._opened:
            await registry.close()


class MdnsPlace(Place):
    def __init__(self) -> None:
        self.service = f"_sh-{uuid.uuid4().hex[:10]}._tcp.local."
        super().__init__(lambda: MdnsRegistry(["127.0.0.1"], settle=0.2, service=self.service))
        self._litterer: AsyncZeroconf | None = None

    async def litter(self) -> None:
        self._litterer = AsyncZeroconf(interfaces=["127.0.0.1"])
        info = AsyncServiceInfo(
            self.service,
            f"junk.{self.service}",
            port=9,
            properties={b"cluster": b"\xff\x1b[2J", b"nodes": b"many"},
            server=f"junk-{self.service.split('.')[0].strip('_')}.local.",
            addresses=[ipaddress.ip_address("127.0.0.1").packed],
        )
        registered: Any = self._litterer.async_register_service(info, cooperating_responders=True)
        await (await registered)

    async def close(self) -> None:
        await super().close()
        if self._litterer is not None:
            await self._litterer.async_close()


class RedisPlace(Place):
    def __init__(self, url: str) -> None:
        self._url = url
        super().__init__(lambda: RedisRegistry(url, ttl=3.0, first=0.02, most=0.1))

    async def litter(self) -> None:
        async with redis.asyncio.from_url(self._url) as client:
            await client.set(PREFIX + "junk", b'{"cluster": "junk", "host": "\x1b[2J"}')
            await client.rpush(PREFIX + "list", b"not", b"a string")
            await client.set(PREFIX + "other", Advert(cluster="stolen", host="10.0.0.1", control_port=1).to_json())

    async def close(self) -> None:
        await super().close()
        async with redis.asyncio.from_url(self._url) as client:
            await client.flushdb()


@asynccontextmanager
async def closing(place: Place) -> AsyncIterator[Place]:
    try:
        yield place
    finally:
        await place.close()


def memory_place() -> Place:
    board = Board()
    return Place(lambda: MemoryRegistry(board))


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 5.0) -> None:
    """Looks again and again; raises TimeoutError where it does not come true."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
