"""A topology in a real Redis: what is kept there, who may write it, strangers' values, restarts."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis.asyncio
import structlog

from shoal.discovery.advert import Advert
from shoal.discovery.changes import Change
from shoal.discovery.redis import PREFIX, RedisRegistry
from shoal.discovery.redis_reader import RedisReader
from shoal.discovery.redis_topology import EVENTS, ROUTE, node_key
from shoal.discovery.topology import MAX_RECORD, NodeLoad, NodeState, RouteRecord, Topology, decoded
from shoal.errors import ClusterError, ConfigError
from tests.support.redis_server import RedisServer
from tests.support.registries import until
from tests.support.topologies import node, topology

pytestmark = pytest.mark.real

REEF = Advert(cluster="reef", host="127.0.0.1", control_port=7420)
a, b = node("a", 1), node("b", 2)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    yield server
    server.stop()


class Stage:
    """A head that shows `now`, a reader, and a client of its own; all on one server."""

    def __init__(self, server: RedisServer, stack: AsyncExitStack) -> None:
        self.server, self._stack = server, stack
        self.now = topology(a)
        self.reader = RedisReader(server.url, first=0.02, most=0.1)
        self.client: Any = redis.asyncio.from_url(server.url)
        stack.push_async_callback(self.reader.close)
        stack.push_async_callback(self.client.aclose)

    def registry(self, ttl: float = 3.0) -> RedisRegistry:
        registry = RedisRegistry(self.server.url, ttl=ttl, first=0.02, most=0.1)
        self._stack.push_async_callback(registry.close)
        registry.show(lambda: self.now)
        return registry

    async def announced(self, ttl: float = 3.0) -> RedisRegistry:
        registry = self.registry(ttl)
        await registry.announce(REEF)
        await self.until_shown(self.now)
        return registry

    async def shown(self) -> Topology | None:
        try:
            return await self.reader.topology("reef")
        except ClusterError:
            return None

    async def until_shown(self, wanted: Topology | None) -> None:
        async def is_shown() -> bool:
            return await self.shown() == wanted

        await until(is_shown, 10)

    async def keys(self) -> set[str]:
        return {key.decode() for key in await self.client.keys("shoal:*")}

    @asynccontextmanager
    async def following(self) -> AsyncIterator[Callable[[], Coroutine[Any, Any, Topology | Change]]]:
        """Gives the next thing that a follower sees."""
        async with contextlib.aclosing(self.reader.follow("reef")) as seen:
            yield lambda: anext(seen)


@asynccontextmanager
async def stage(server: RedisServer) -> AsyncGenerator[Stage]:
    """A scenario that hangs fails."""
    async with asyncio.timeout(30), AsyncExitStack() as stack:
        yield Stage(server, stack)


def play(server: RedisServer, scenario: Callable[[Stage], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        async with stage(server) as made:
            await scenario(made)

    asyncio.run(whole())


def test_there_is_a_key_for_each_node_and_one_for_the_route(server: RedisServer):
    async def scenario(made: Stage) -> None:
        made.now = topology(a, b)
        await made.announced()
        keys = {node_key("reef", "a"), node_key("reef", "b"), ROUTE + "reef"}
        assert await made.keys() == keys | {PREFIX + "reef"}
        assert decoded(await made.client.get(node_key("reef", "b")), NodeState) == b
        record = decoded(await made.client.get(ROUTE + "reef"), RouteRecord)
        assert (record.nodes, record.route, record.ttl) == (["a", "b"], made.now.route, 3.0)
        for key in keys:
            assert 0 < await made.client.pttl(key) <= 3000

    play(server, scenario)


def test_keys_go_with_their_node_and_all_go_with_the_head(server: RedisServer):
    async def scenario(made: Stage) -> None:
        made.now = topology(a, b)
        registry = await made.announced(ttl=60)
        made.now = topology(b)
        await made.until_shown(made.now)
        assert node_key("reef", "a") not in await made.keys()
        await registry.withdraw()
        assert await made.keys() == set()

    play(server, scenario)


def test_a_follower_is_shown_the_cluster_and_then_told_every_change(server: RedisServer):
    async def scenario(made: Stage) -> None:
        registry = await made.announced()
        async with made.following() as seen:
            assert await seen() == topology(a)
            for now, kind in [
                (topology(a, b), "joined"),
                (topology(node("a", 1, load=NodeLoad(rows=7)), b), "load"),
                (topology(b), "left"),
                (topology(b, epoch=2), "route"),
            ]:
                made.now = now
                told = await seen()
                assert isinstance(told, Change) and told.kind == kind
            await registry.withdraw()
            closed = await seen()
            assert isinstance(closed, Change) and closed.kind == "closed"

    play(server, scenario)


def test_a_head_in_which_nothing_happens_is_heard_and_numbers_what_it_says(server: RedisServer):
    async def scenario(made: Stage) -> None:
        async with made.client.pubsub() as channel:
            await channel.subscribe(EVENTS + "reef")
            await made.announced(ttl=0.6)
            told: list[Change] = []
            while [change.kind for change in told].count("alive") < 3:
                message = await channel.get_message(timeout=5)
                if message is not None and message["type"] == "message":
                    told.append(decoded(message["data"], Change))
        assert [change.kind for change in told] == ["joined", "route", "alive", "alive", "alive"]
        assert [(change.head, change.seq) for change in told] == [(made.now.route.head, i) for i in range(1, 6)]

    play(server, scenario)


def test_a_silent_head_is_noticed_and_so_is_the_next_one(server: RedisServer):
    async def scenario(made: Stage) -> None:
        registry = await made.announced(ttl=0.5)
        async with made.following() as seen:
            assert await seen() == topology(a)
            assert registry._keeper is not None
            registry._keeper.cancel()  # as a head that is killed, or frozen
            silent = await seen()
            assert isinstance(silent, Change) and silent.kind == "silent"
            assert await made.keys() == set()
            made.now = topology(node("a", 1, head="other"), head="other")
            await made.announced(ttl=0.5)
            kinds = [one.kind for one in [await seen() for _ in range(4)] if isinstance(one, Change)]
            assert kinds == ["heard", "left", "joined", "route"]

    play(server, scenario)


@pytest.mark.slow
def test_everything_is_there_again_after_a_restart_and_whoever_follows_goes_on(server: RedisServer):
    async def scenario(made: Stage) -> None:
        made.now = topology(a)
        await made.announced(ttl=60)
        with structlog.testing.capture_logs() as logs:
            async with made.following() as seen:
                assert await seen() == topology(a)
                server.stop()
                following = asyncio.ensure_future(seen())
                made.now = topology(a, b)

                async def both_noticed() -> bool:
                    events = [entry["event"] for entry in logs if entry["log_level"] == "error"]
                    return len(events) == 2

                await until(both_noticed, 10)
                await asyncio.to_thread(server.start)
                await made.until_shown(topology(a, b))
                kinds = [await following]
                while not (isinstance(kinds[-1], Change) and kinds[-1].node == "b"):
                    kinds.append(await seen())
                assert await made.keys() == {node_key("reef", "a"), node_key("reef", "b"), ROUTE + "reef", PREFIX + "reef"}
                made.now = topology(b)
                left = await seen()
                assert isinstance(left, Change) and (left.kind, left.node) == ("left", "a")
        assert sum(entry["log_level"] == "error" for entry in logs) == 2

    play(server, scenario)


def test_what_was_lost_without_an_outage_is_written_again(server: RedisServer):
    async def scenario(made: Stage) -> None:
        await made.announced(ttl=0.6)
        await made.client.flushall()
        await made.until_shown(made.now)

    play(server, scenario)


def test_another_head_of_the_same_name_writes_nothing(server: RedisServer):
    async def scenario(made: Stage) -> None:
        await made.announced(ttl=0.6)
        made.now = topology(a, b)
        await made.client.set(PREFIX + "reef", REEF.at("10.0.0.1").to_json())
        with structlog.testing.capture_logs() as logs:

            async def given_up() -> bool:
                return any("already announced" in str(entry.get("error")) for entry in logs)

            await until(given_up, 10)
        await made.until_shown(None)  # its own keys expire
        assert await made.keys() == {PREFIX + "reef"}

    play(server, scenario)


JUNK: dict[str, bytes] = {
    "not JSON": b"\xff\x00{",
    "another type": b"[1, 2]",
    "nested": b"[" * 20_000,
    "too long": b'"' + b"x" * (MAX_RECORD + 9) + b'"',
    "control characters": msgspec.json.encode({**msgspec.to_builtins(b), "machine": "\x1b[2J"}),
    "another node's": msgspec.json.encode(a),
}
if shutil.which("redis-server") is None:
    del JUNK["too long"]  # fakeredis sends values as lines, of which the client takes 64 KiB


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK.keys())
def test_a_node_that_strangers_wrote_is_left_out_and_warned_about_once(server: RedisServer, junk: bytes):
    async def scenario(made: Stage) -> None:
        made.now = topology(a, b)
        await made.announced(ttl=60)
        await made.client.set(node_key("reef", "b"), junk)
        with structlog.testing.capture_logs() as logs:
            for _ in range(3):
                assert await made.shown() == topology(a)
        warned = [entry["source"] for entry in logs]
        assert warned == ([] if junk == JUNK["another node's"] else [node_key("reef", "b")])

    play(server, scenario)


@pytest.mark.parametrize("junk", [*JUNK.values()], ids=JUNK.keys())
def test_a_route_that_strangers_wrote_is_none(server: RedisServer, junk: bytes):
    async def scenario(made: Stage) -> None:
        await made.client.set(ROUTE + "reef", junk)
        with structlog.testing.capture_logs() as logs:
            for _ in range(3):
                with pytest.raises(ClusterError, match="the head of cluster reef is silent"):
                    await made.reader.topology("reef")
        assert [entry["source"] for entry in logs] == [ROUTE + "reef"]

    play(server, scenario)


def test_keys_of_another_type_are_no_values_and_are_replaced(server: RedisServer):
    async def scenario(made: Stage) -> None:
        for key in (ROUTE + "reef", node_key("reef", "a")):
            await made.client.rpush(key, b"not", b"a string")
        with structlog.testing.capture_logs() as logs:
            assert await made.shown() is None
            assert await made.shown() is None
        assert [entry["source"] for entry in logs] == [ROUTE + "reef"]
        await made.announced()
        assert await made.shown() == topology(a)

    play(server, scenario)


def test_events_that_strangers_publish_change_nothing(server: RedisServer):
    async def scenario(made: Stage) -> None:
        await made.announced(ttl=60)
        forged = msgspec.json.encode(Change("joined", "stranger", 1, "z", state=node("z", 9, head="stranger")))
        with structlog.testing.capture_logs() as logs:
            async with made.following() as seen:
                assert await seen() == topology(a)
                following = asyncio.ensure_future(seen())
                for data in (*JUNK.values(), *JUNK.values(), forged):
                    await made.client.publish(EVENTS + "reef", data)
                made.now = topology(a, b)
                told = await following
                assert isinstance(told, Change) and (told.kind, told.node) == ("joined", "b")
        assert [entry["source"] for entry in logs if "ignored" in entry["event"]] == [EVENTS + "reef"]

    play(server, scenario)


def test_a_reader_says_what_is_wrong(server: RedisServer):
    async def scenario(made: Stage) -> None:
        async with made.following() as seen:
            with pytest.raises(ClusterError, match=r"the head of cluster reef is silent.*is `shoal serve` running"):
                await seen()
        server.stop()
        with pytest.raises(ClusterError, match=r"no Redis answers at redis://127"):
            await made.reader.topology("reef")
        async with made.following() as seen:
            with pytest.raises(ClusterError, match=r"no Redis answers at redis://127"):
                await seen()

    play(server, scenario)


def test_a_wrong_password_is_a_setting_at_fault(tmp_path: Path):
    server = RedisServer(tmp_path, password="s3cr!et")

    async def work() -> None:
        for url in (server.url.replace("s3cr!et", "s3cr-wrong"), server.url.replace(":s3cr!et@", "")):
            reader = RedisReader(url)
            try:
                with pytest.raises(ConfigError, match="refuses the password") as caught:
                    await reader.topology("reef")
                assert "s3cr" not in str(caught.value)
                with pytest.raises(ConfigError, match="refuses the password"):
                    await anext(reader.follow("reef"))
            finally:
                await reader.close()

    try:
        asyncio.run(work())
    finally:
        server.stop()
