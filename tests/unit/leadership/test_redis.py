"""The lease in Redis: what a server that lost its memory does not break, and what it answers instead of a lease."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from shoal.discovery import redis_url
from shoal.errors import ConfigError, LeaseUnreachable
from shoal.leadership.redis import LEASE, TERM, Counter, RedisLease
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.real
A, B = "10.0.0.1:7420", "10.0.0.2:7420"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    made = RedisServer(tmp_path)
    yield made
    made.stop()


def at(server: RedisServer, scenario: Callable[[RedisLease, RedisLease, Redis], Awaitable[None]], duration: float = 0.5) -> None:
    async def run() -> None:
        leases = [RedisLease(redis_url.parse(server.url), "reef", duration) for _ in range(2)]
        async with asyncio.timeout(60), Redis.from_url(server.url, protocol=2) as client:
            await scenario(leases[0], leases[1], client)
        for lease in leases:
            await lease.close()

    asyncio.run(run())


async def taken(lease: RedisLease, address: str) -> int:
    while True:
        if (grant := await lease.acquire(address)) is not None:
            return grant.term
        await asyncio.sleep(0.02)


def test_the_term_is_kept_without_an_end_and_the_lease_with_one(server: RedisServer):
    async def scenario(a: RedisLease, b: RedisLease, client: Redis) -> None:
        assert await taken(a, A) == 1
        assert await client.pttl(TERM + "reef") == -1
        assert 0 < await client.pttl(LEASE + "reef") <= 500
        await asyncio.sleep(0.6)
        assert await client.get(LEASE + "reef") is None
        assert await taken(b, B) == 2

    at(server, scenario)


def test_a_new_server_that_knows_an_old_grant_grants_nothing_before_it_is_over(server: RedisServer):
    """A snapshot is older than what was granted last: the head that it names does not have the lease."""

    async def scenario(a: RedisLease, b: RedisLease, client: Redis) -> None:
        assert await taken(a, A) == 1
        snapshot = await client.get(LEASE + "reef")
        assert snapshot is not None
        await a.release()
        assert await taken(b, B) == 2
        await client.set(LEASE + "reef", snapshot, px=30_000)
        await client.set(TERM + "reef", msgspec.json.encode(Counter(1, "the run before")))
        assert await a.acquire(A) is None
        assert await taken(a, A) == 2  # a saw no later term than 1: b's ended in time, by its own clock
        assert await b.renew() is None

    at(server, scenario)


def test_heads_remember_a_term_that_redis_forgot(server: RedisServer):
    async def scenario(a: RedisLease, b: RedisLease, client: Redis) -> None:
        for expected in (1, 2, 3):
            assert await taken(a, A) == expected
        assert await b.acquire(B) is None
        await a.release()
        await client.flushall()
        assert await taken(b, B) == 4

    at(server, scenario)


def test_a_server_whose_restart_nobody_would_notice_is_refused(server: RedisServer, monkeypatch: pytest.MonkeyPatch):
    async def info(self: Pipeline, *sections: str) -> dict[str, str]:
        return {"redis_version": "7.4.0"}

    async def scenario(a: RedisLease, b: RedisLease, client: Redis) -> None:
        assert await taken(a, A) == 1
        monkeypatch.setattr(Pipeline, "info", info)
        for ask in (a.renew, b.holder, a.release, lambda: b.acquire(B)):
            with pytest.raises(ConfigError, match="run_id"):
                await ask()

    at(server, scenario)


def test_a_key_that_holds_something_else_is_named(server: RedisServer):
    async def scenario(a: RedisLease, b: RedisLease, client: Redis) -> None:
        await client.set(LEASE + "reef", "\x1b[2J")
        with pytest.raises(LeaseUnreachable, match="shoal:lease:reef or shoal:term:reef holds something else"):
            await a.acquire(A)
        await client.delete(LEASE + "reef")
        await client.rpush(TERM + "reef", "a list")
        with pytest.raises(LeaseUnreachable):
            await a.acquire(A)

    at(server, scenario)


def test_a_wrong_password_is_the_users_to_fix_and_never_shown(tmp_path: Path):
    server = RedisServer(tmp_path, "right")

    async def run() -> None:
        lease = RedisLease(redis_url.parse(server.url.replace("right", "hunter2")), "reef")
        with pytest.raises(ConfigError, match="refuses the password") as refused:
            await lease.acquire(A)
        assert "hunter2" not in str(refused.value) + repr(lease)
        await lease.close()

    try:
        asyncio.run(run())
    finally:
        server.stop()
