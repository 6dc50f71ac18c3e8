"""What only Redis can do to an announcement: expire it, restart, refuse the password, hold another's."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import redis.asyncio
import structlog

from shoal.discovery.advert import Advert
from shoal.discovery.base import Registry
from shoal.discovery.redis import PREFIX, RedisRegistry
from shoal.errors import ClusterError, ConfigError
from tests.support.redis_server import RedisServer
from tests.support.registries import until

pytestmark = pytest.mark.real

REEF = Advert(cluster="reef", host="127.0.0.1", control_port=7420)
SECRET = "s3cr%21et"  # as in a URL

Open = Callable[[str], RedisRegistry]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    yield server
    server.stop()


@asynccontextmanager
async def registries(ttl: float = 3.0) -> AsyncIterator[Open]:
    """Opens registries and closes them in the end. A scenario that hangs fails."""
    async with asyncio.timeout(20), AsyncExitStack() as stack:

        def open_one(url: str) -> RedisRegistry:
            registry = RedisRegistry(url, ttl=ttl, first=0.02, most=0.1)
            stack.push_async_callback(registry.close)
            return registry

        yield open_one


def scenario(work: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(work())


async def found(node: Registry, cluster: str = "reef") -> Advert | None:
    try:
        return await node.find(cluster, 0.05)
    except ClusterError:
        return None


ANNOUNCER = """
import asyncio, sys
from shoal.discovery.advert import Advert
from shoal.discovery.redis import RedisRegistry

async def main():
    registry = RedisRegistry(sys.argv[1], ttl=0.6)
    await registry.announce(Advert(cluster="reef", host="127.0.0.1", control_port=7420))
    print("announced", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.slow
def test_a_head_that_is_killed_is_forgotten(server: RedisServer):
    head = subprocess.Popen([sys.executable, "-c", ANNOUNCER, server.url], stdout=subprocess.PIPE, text=True)
    try:
        assert head.stdout is not None
        assert any("announced" in line for line in head.stdout)

        async def work() -> None:
            async with registries() as open_one:
                node = open_one(server.url)
                await asyncio.sleep(0.9)  # longer than the time to live: it is kept alive
                assert await node.find("reef", 5) == REEF
                head.kill()

                async def gone() -> bool:
                    return await found(node) is None

                await until(gone)

        scenario(work)
    finally:
        head.kill()
        head.wait(10)
        assert head.stdout is not None
        head.stdout.close()


@pytest.mark.slow
def test_an_announcement_outlives_a_restart_of_redis_and_says_so_once(server: RedisServer):
    async def work() -> None:
        with structlog.testing.capture_logs() as logs:
            async with registries(ttl=0.3) as open_one:
                head, node = open_one(server.url), open_one(server.url)
                await head.announce(REEF)
                server.stop()

                async def lost() -> bool:
                    return any(entry["log_level"] == "error" for entry in logs)

                await until(lost)
                await head.update(grown := msgspec.structs.replace(REEF, nodes=5))  # does not wait for Redis
                await asyncio.sleep(0.3)  # several tries
                await asyncio.to_thread(server.start)

                async def back() -> bool:
                    return await found(node) == grown

                await until(back)
        assert [entry["log_level"] for entry in logs if entry["log_level"] == "error"] == ["error"]
        assert sum(entry["event"] == "the cluster can be found again" for entry in logs) == 1

    scenario(work)


def test_a_name_belongs_to_the_address_that_announced_it_first(server: RedisServer):
    async def work() -> None:
        async with registries() as open_one:
            first, second = open_one(server.url), open_one(server.url)
            await first.announce(REEF)
            with pytest.raises(ClusterError, match=r"reef is already announced by the head at 127\.0\.0\.1:7420; choose another name"):
                await second.announce(REEF.at("10.0.0.1"))
            await second.close()
            assert await found(open_one(server.url)) == REEF
            again = open_one(server.url)  # the same head, started again: no waiting
            await again.announce(msgspec.structs.replace(REEF, state="serving"))

    scenario(work)


def test_withdrawing_leaves_what_another_head_put_there(server: RedisServer):
    async def work() -> None:
        async with registries() as open_one, redis.asyncio.from_url(server.url) as client:
            head, node = open_one(server.url), open_one(server.url)
            await head.announce(REEF)
            await client.set(PREFIX + "reef", REEF.at("10.0.0.1").to_json())
            await head.withdraw()
            assert await found(node) == REEF.at("10.0.0.1")

    scenario(work)


@pytest.mark.parametrize("wildcard", ["0.0.0.0", "::"])
def test_a_head_on_every_address_is_announced_at_one(server: RedisServer, wildcard: str):
    async def work() -> None:
        async with registries() as open_one:
            await open_one(server.url).announce(REEF.at(wildcard))
            assert not (await open_one(server.url).find("reef", 5)).anywhere

    scenario(work)


def test_a_redis_that_is_not_there_is_an_error_that_says_so(server: RedisServer):
    server.stop()

    async def work() -> None:
        async with registries() as open_one:
            url = server.url.replace("//", f"//:{SECRET}@")
            with pytest.raises(ClusterError, match=r"no Redis answers at redis://:\*\*\*@127.*is it running") as announcing:
                await open_one(url).announce(REEF)
            with pytest.raises(ClusterError, match=r"no Redis answers at redis://:\*\*\*@127") as finding:
                await open_one(url).find(None, 0.1)
            assert all("s3cr" not in str(caught.value) for caught in (announcing, finding))

    scenario(work)


def test_a_wrong_password_is_a_setting_at_fault_and_the_right_one_works(tmp_path: Path):
    server = RedisServer(tmp_path, password="s3cr!et")
    try:

        async def work() -> None:
            async with registries() as open_one:
                right = server.url.replace("s3cr!et", SECRET)
                await open_one(right).announce(REEF)
                assert await open_one(right).find(None, 5) == REEF
                for url in (server.url.replace("s3cr!et", "s3cr-wrong"), server.url.replace(":s3cr!et@", "")):
                    with pytest.raises(ConfigError, match="refuses the password") as caught:
                        await open_one(url).find(None, 5)
                    assert "s3cr" not in str(caught.value)
                    with pytest.raises(ConfigError, match="refuses the password"):
                        await open_one(url).announce(REEF)

        scenario(work)
    finally:
        server.stop()


def test_tls_is_spoken_where_the_url_says_so_and_nothing_before_it():
    async def work() -> None:
        heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.set_result(await reader.read(3))
            writer.close()

        async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as plain, registries() as open_one:
            port = plain.sockets[0].getsockname()[1]
            with pytest.raises(ClusterError, match="no Redis answers at rediss://"):
                await open_one(f"rediss://:{SECRET}@127.0.0.1:{port}").announce(REEF)
            assert (await heard)[:2] == b"\x16\x03"  # a TLS handshake record

    scenario(work)
