"""Reads what heads keep in Redis about their clusters, and follows it. It is not trusted: what no head could have written is ignored."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Mapping
from random import Random
from typing import Any, TypeVar, cast

import structlog
from redis.asyncio.client import PubSub
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from shoal.discovery.changes import Change, TopologyView
from shoal.discovery.redis_client import client_of, failure
from shoal.discovery.redis_topology import EVENTS, ROUTE, node_key
from shoal.discovery.redis_url import parse
from shoal.discovery.topology import MAX_RECORD, NodeState, RouteRecord, Topology, decoded
from shoal.errors import ClusterError, RemoteProtocolError
from shoal.retry import Backoff

log = structlog.get_logger()

_TOGETHER = 64  # nodes that are read at once
_GRACE = 0.25  # seconds beyond the time to live after which a silent head's keys are looked for
_UNTOLD = 5.0  # seconds that keys live, as long as no head has said so
_REFUSED = 256  # keys about which a warning is remembered
T = TypeVar("T")


class RedisReader:
    """first, most: limits in seconds of the wait before a lost Redis is tried again."""

    def __init__(self, url: str, first: float = 0.25, most: float = 10.0, rng: Random | None = None) -> None:
        """Raises ConfigError for an unusable URL; nothing is sent yet."""
        self._url = parse(url)
        self._first, self._most, self._rng = first, most, rng or Random()
        self._client = client_of(self._url)
        self._refused: set[str] = set()

    async def topology(self, cluster: str) -> Topology:
        """What a head keeps now. Raises ClusterError if it is silent or no Redis answers, ConfigError for a wrong password."""
        try:
            record, nodes = await self._read(cluster)
        except (RedisError, OSError) as error:
            raise failure(self._url, error) from None
        if record is None:
            raise self._silence(cluster)
        return Topology(record.route, nodes, others=record.others)

    async def follow(self, cluster: str) -> AsyncGenerator[Topology | Change]:
        """What a head keeps now, then every change of it, without end. Raises ClusterError if it is silent in the beginning, ConfigError for
        a wrong password."""
        view, backoff = TopologyView(), Backoff(self._first, self._most)
        while True:
            try:
                async with cast(Any, self._client).pubsub() as channel:
                    await channel.subscribe(EVENTS + cluster)
                    async for seen in self._listen(cluster, channel, view):
                        if backoff.tries:
                            log.warning("Redis answers again", redis=self._url.shown)
                            backoff = Backoff(self._first, self._most)
                        yield seen
            except AuthenticationError as error:
                raise failure(self._url, error) from None
            except (RedisError, OSError) as error:
                if view.topology is None:
                    raise failure(self._url, error) from None
                if not backoff.tries:
                    log.error("the cluster cannot be followed; trying on", redis=self._url.shown, error=self._url.told(error))
            await asyncio.sleep(backoff.next(self._rng))

    async def close(self) -> None:
        await self._client.aclose()

    async def _listen(self, cluster: str, channel: PubSub, view: TopologyView) -> AsyncGenerator[Topology | Change]:
        """Raises ClusterError if there is no head in the beginning, RedisError, OSError."""
        record, nodes = await self._read(cluster)
        if record is None and view.topology is None:
            raise self._silence(cluster)
        first, news = view.topology is None, view.read(record, nodes)
        if first and record is not None:
            yield Topology(record.route, nodes, others=record.others)
        ttl = record.ttl if record is not None else _UNTOLD
        while True:
            for change in news:
                yield change
            heard = await self._event(cluster, channel, ttl + _GRACE)
            if heard is not None and (known := view.hear(heard)) is not None:
                news = known
                continue
            record, nodes = await self._read(cluster)
            ttl, news = record.ttl if record is not None else ttl, view.read(record, nodes)

    async def _event(self, cluster: str, channel: PubSub, seconds: float) -> Change | None:
        """The next one; None if none comes. Raises RedisError, OSError."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while (left := deadline - loop.time()) > 0:
            message = cast("Mapping[str, Any] | None", await cast(Any, channel).get_message(timeout=left))
            if message is None or message["type"] != "message":
                continue
            if (change := self._decoded(message["data"], Change, EVENTS + cluster)) is not None:
                return change
        return None

    async def _read(self, cluster: str) -> tuple[RouteRecord | None, dict[str, NodeState]]:
        """Raises RedisError, OSError."""
        (found,) = await self._values([ROUTE + cluster])
        if not found or (record := self._decoded(found, RouteRecord, ROUTE + cluster)) is None:
            return None, {}
        nodes: dict[str, NodeState] = {}
        names = list(dict.fromkeys(record.nodes))
        for start in range(0, len(names), _TOGETHER):
            some = names[start : start + _TOGETHER]
            keys = [node_key(cluster, name) for name in some]
            for name, key, value in zip(some, keys, await self._values(keys), strict=True):
                node = self._decoded(value, NodeState, key) if value else None
                if node is not None and node.name == name and node.head == record.route.head:
                    nodes[name] = node
        return record, nodes

    async def _values(self, keys: list[str]) -> list[bytes]:
        """Of each key at most one byte more than a head writes; b'' where there is none, or another type. Raises RedisError, OSError."""
        pipe = self._client.pipeline(transaction=False)
        for key in keys:
            pipe.getrange(key, 0, MAX_RECORD)
        values: list[bytes] = []
        for key, value in zip(keys, await cast(Awaitable[list[Any]], pipe.execute(raise_on_error=False)), strict=True):
            if isinstance(value, ResponseError):
                self._ignore(key, self._url.told(value))
            elif isinstance(value, Exception):
                raise value
            values.append(value if isinstance(value, bytes) else b"")
        return values

    def _decoded(self, data: bytes, kind: type[T], source: str) -> T | None:
        try:
            return decoded(data, kind)
        except RemoteProtocolError as error:
            self._ignore(source, str(error))
            return None

    def _ignore(self, source: str, reason: str) -> None:
        """Says so once for each source."""
        if source not in self._refused and len(self._refused) < _REFUSED:
            self._refused.add(source)
            log.warning("what is in Redis is ignored", source=source[:120], reason=reason)

    def _silence(self, cluster: str) -> ClusterError:
        return ClusterError(
            f"the head of cluster {cluster} is silent: {self._url.shown} has nothing of it, or it has expired; "
            "is `shoal serve` running, with the same --cluster and --discovery?"
        )
