"""Redis: one key per cluster, `shoal:cluster:<name>`, that its head keeps alive.

The key holds the advert as JSON and expires by itself, so that a killed head is forgotten. A head owns the key as long as the
advert in it has its address: a head restarted at the same address takes over at once; another cluster of the same name is
refused. Beside it, in the same transactions, a head keeps its cluster's topology: see redis_topology.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, cast

import structlog
from redis.asyncio.client import Pipeline
from redis.exceptions import AuthenticationError, RedisError, ResponseError, WatchError

from shoal.address import is_loopback
from shoal.discovery.addresses import facing
from shoal.discovery.advert import MAX_JSON, Advert, check_name
from shoal.discovery.base import MOST, check_update, choose, nothing_found
from shoal.discovery.redis_client import client_of, failure
from shoal.discovery.redis_topology import TopologyKeys
from shoal.discovery.redis_url import parse
from shoal.discovery.topology import Topology
from shoal.errors import ClusterError, RemoteProtocolError
from shoal.retry import Backoff

log = structlog.get_logger()

PREFIX = "shoal:cluster:"
POLL = 0.2  # seconds between reads if Redis answers
PATIENCE = 1.0  # seconds at most between attempts if it does not
LOOK = 0.5  # seconds between looks at the topology


class RedisRegistry:
    """The end of one head or node.

    ttl:       seconds after which a silent head is forgotten; it writes all three times in that time
    first, most: limits in seconds of the wait before a lost Redis is tried again
    """

    def __init__(self, url: str, ttl: float = 15.0, first: float = 0.25, most: float = 10.0, rng: Random | None = None) -> None:
        """Raises ConfigError for an unusable URL; nothing is sent yet."""
        self._url = parse(url)
        self._ttl = ttl
        self._first, self._most = first, most
        self._rng = rng or Random()
        self._client = client_of(self._url)
        self._advert: Advert | None = None
        self._look: Callable[[], Topology] | None = None
        self._topology = TopologyKeys(ttl)
        self._changed = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"RedisRegistry({self._url.shown})"

    async def announce(self, advert: Advert) -> None:
        if self._keeper is not None:
            return await self.update(advert)
        advert = await self._reachable(advert)
        if is_loopback(advert.host):
            log.warning("only nodes on this machine can join", cluster=advert.cluster, address=advert.address)
        try:
            await self._write(advert)
        except (RedisError, OSError) as error:
            raise failure(self._url, error) from None
        self._advert = advert
        self._keeper = asyncio.create_task(self._keep(), name="redis advert")
        return None

    async def update(self, advert: Advert) -> None:
        """Written soon; does not wait for Redis, which may be down."""
        advert = await self._reachable(advert)
        check_update(self._advert, advert)
        if self._keeper is not None and self._keeper.done():
            await self._keeper  # raises what it died of
        if advert != self._advert:
            self._advert = advert
            self._changed.set()

    def show(self, look: Callable[[], Topology]) -> None:
        self._look = look
        self._changed.set()

    async def withdraw(self) -> None:
        keeper, self._keeper, advert, self._advert = self._keeper, None, self._advert, None
        if keeper is None or advert is None:
            return
        keeper.cancel()
        try:
            await keeper
        except asyncio.CancelledError:
            if (current := asyncio.current_task()) is not None and current.cancelling():
                raise
        try:
            await self._erase(advert)
        except (RedisError, OSError) as error:
            log.warning(
                "the cluster is still announced",
                cluster=advert.cluster,
                redis=self._url.shown,
                seconds=self._ttl,
                error=self._url.told(error),
            )

    async def find(self, cluster: str | None, timeout: float) -> Advert:
        if cluster is not None:
            check_name(cluster)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        backoff = Backoff(self._first, PATIENCE)
        refused: set[str] = set()
        while True:
            trouble: Exception | None = None
            try:
                async with asyncio.timeout_at(deadline):
                    adverts = await self._read(cluster, refused)
                if (found := choose(adverts, cluster)) is not None:
                    return found
                pause, backoff = POLL, Backoff(self._first, PATIENCE)
            except AuthenticationError as error:
                raise failure(self._url, error) from None
            except (RedisError, OSError) as error:  # TimeoutError is an OSError
                pause, trouble = backoff.next(self._rng), error
            await asyncio.sleep(max(min(pause, deadline - loop.time()), 0))
            if loop.time() >= deadline:
                if trouble is None:
                    raise nothing_found(cluster, f"in {self._url.shown}", timeout)
                raise failure(self._url, trouble) from None

    async def close(self) -> None:
        try:
            await self.withdraw()
        finally:
            await self._client.aclose()

    async def _keep(self) -> None:
        """Writes what changes, and all of it before it expires, through outages, until there is no advert: a cancellation may be lost in the
        client, as asyncio.wait_for loses some before Python 3.12."""
        loop = asyncio.get_running_loop()
        backoff: Backoff | None = None  # while it fails
        expiring = loop.time() + self._ttl / 3
        while self._advert is not None:
            quiet = expiring - loop.time() if self._look is None else min(expiring - loop.time(), LOOK)
            await self._pause(quiet if backoff is None else backoff.next(self._rng), wake=backoff is None)
            whole = self._changed.is_set() or backoff is not None or loop.time() >= expiring
            self._changed.clear()
            try:
                await self._write_due(self._advert, whole)
            except (RedisError, OSError, ClusterError) as error:
                if backoff is None:
                    backoff = Backoff(self._first, self._most)
                    told = self._url.told(error)
                    log.error("no node can find the cluster: its advert cannot be kept; trying on", redis=self._url.shown, error=told)
                continue
            if whole:
                expiring = loop.time() + self._ttl / 3
            if backoff is not None:
                log.warning("the cluster can be found again", redis=self._url.shown)
                backoff = None

    async def _write_due(self, advert: Advert, whole: bool) -> None:
        """whole: also what has not changed. Raises ClusterError if another head holds the name, RedisError, OSError."""
        topology = self._look() if self._look is not None else None
        if whole or (topology is not None and self._topology.lacks(topology)):
            await self._write(advert, topology, whole)

    async def _pause(self, seconds: float, wake: bool) -> None:
        if not wake:
            return await asyncio.sleep(seconds)
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            pass
        return None

    async def _write(self, advert: Advert, topology: Topology | None = None, whole: bool = True) -> None:
        """Raises ClusterError if another head holds the name, RedisError, OSError."""
        key = PREFIX + advert.cluster
        while True:
            async with self._client.pipeline(transaction=True) as pipe:
                held = await self._watched(pipe, advert.cluster)
                if held is not None and held.address != advert.address:
                    raise ClusterError(
                        f"a cluster named {advert.cluster} is already announced by the head at {held.address}; choose another name, "
                        f"or wait {self._ttl:g} s if that head is gone"
                    )
                pipe.multi()
                pipe.set(key, advert.to_json(), px=max(round(self._ttl * 1000), 1))
                if topology is not None:
                    self._topology.put(pipe, advert.cluster, topology, whole)
                if await _committed(pipe):
                    if topology is not None:
                        self._topology.ran(topology)
                    return

    async def _erase(self, advert: Advert) -> None:
        """Removes the advert unless it is another head's by now. Raises RedisError, OSError."""
        while True:
            async with self._client.pipeline(transaction=True) as pipe:
                held = await self._watched(pipe, advert.cluster)
                if held is None or held.address != advert.address:
                    return
                pipe.multi()
                pipe.delete(PREFIX + advert.cluster)
                self._topology.erase(pipe, advert.cluster)
                if await _committed(pipe):
                    return

    async def _watched(self, pipe: Pipeline, cluster: str) -> Advert | None:
        """The advert under a key, watched from now on; None if there is none, or it is invalid. Raises RedisError, OSError."""
        key = PREFIX + cluster
        await pipe.watch(key)
        try:
            data = await cast(Awaitable[bytes], pipe.getrange(key, 0, MAX_JSON))
            return _parsed(data, cluster) if data else None
        except (ResponseError, RemoteProtocolError):  # ResponseError: a key of another type
            return None

    async def _read(self, cluster: str | None, refused: set[str]) -> list[Advert]:
        """The adverts of that name, or all. `refused`: keys whose invalid content was logged. Raises RedisError, OSError."""
        adverts: list[Advert] = []
        keys: set[bytes] = set()
        if cluster is not None:
            keys.add((PREFIX + cluster).encode())
        else:
            async for key in cast(Any, self._client).scan_iter(match=PREFIX + "*", count=1000):
                keys.add(key)
                if len(keys) == MOST:
                    break
        for key in sorted(keys):
            name = key.decode(errors="replace")
            try:
                data = await cast(Awaitable[bytes], self._client.getrange(key, 0, MAX_JSON))
                if data:
                    adverts.append(_parsed(data, name.removeprefix(PREFIX)))
            except (ResponseError, RemoteProtocolError) as error:  # ResponseError: a key of another type
                if name not in refused:
                    refused.add(name)
                    log.warning("an advert is ignored", source=name[:80], reason=self._url.told(error))
        return adverts

    async def _reachable(self, advert: Advert) -> Advert:
        return advert.at(await facing(self._url.host, self._url.port, advert.host)) if advert.anywhere else advert


def _parsed(data: bytes, cluster: str) -> Advert:
    """Raises RemoteProtocolError."""
    advert = Advert.from_json(data)
    if advert.cluster != cluster:
        raise RemoteProtocolError(f"an advert of {advert.cluster} under the name {cluster[:60]!r}")
    return advert


async def _committed(pipe: Pipeline) -> bool:
    """Whether the transaction ran; False: the key changed meanwhile, so try again. Raises RedisError, OSError."""
    try:
        await pipe.execute()
    except WatchError:
        return False
    return True
