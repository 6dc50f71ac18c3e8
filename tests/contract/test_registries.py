"""One contract for every registry that can announce: in memory, by mDNS over the loopback interface, in a real Redis."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator

import msgspec
import pytest
import structlog

from shoal.discovery.advert import Advert
from shoal.errors import ClusterError, ConfigError, LocalProtocolError
from tests.support.redis_server import RedisServer
from tests.support.registries import MdnsPlace, Place, RedisPlace, closing, memory_place, until
from tests.support.topologies import node as cluster_node
from tests.support.topologies import topology

Scenario = Callable[[Place], Awaitable[None]]
Run = Callable[[Scenario], None]

REEF = Advert(
    cluster="reef", host="127.0.0.1", control_port=7420, pairing_port=7421, model="smollm2-135m", state="serving", nodes=2, version="0.1.0"
)
LAGOON = Advert(cluster="lagoon", host="127.0.0.1", control_port=7520, model="qwen", secure=True)


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


def runner(make: Callable[[], Place]) -> Run:
    """Runs a scenario in a place of its own. One that hangs fails."""

    async def in_place(scenario: Scenario) -> None:
        async with asyncio.timeout(20), closing(make()) as place:
            await scenario(place)

    return lambda scenario: asyncio.run(in_place(scenario))


def places(*names: str) -> list[object]:
    marks = {"mdns": [pytest.mark.real, pytest.mark.slow], "redis": [pytest.mark.real]}
    return [pytest.param(name, marks=marks.get(name, []), id=name) for name in names]


@pytest.fixture(params=places("memory", "mdns", "redis"))
def run(request: pytest.FixtureRequest) -> Run:
    return run_in(request)


@pytest.fixture(params=places("mdns", "redis"))
def run_outside(request: pytest.FixtureRequest) -> Run:
    """Where strangers can write."""
    return run_in(request)


def run_in(request: pytest.FixtureRequest) -> Run:
    if request.param == "memory":
        return runner(memory_place)
    if request.param == "mdns":
        return runner(MdnsPlace)
    server: RedisServer = request.getfixturevalue("redis_server")
    return runner(lambda: RedisPlace(server.url))


def test_what_is_announced_is_found_by_name_and_without(run: Run):
    async def scenario(place: Place) -> None:
        await place.open().announce(REEF)
        node = place.open()
        assert await node.find("reef", 5) == REEF
        assert await node.find(None, 5) == REEF

    run(scenario)


def test_a_search_waits_for_an_announcement_that_comes_later(run: Run):
    async def scenario(place: Place) -> None:
        async with asyncio.TaskGroup() as group:
            found = group.create_task(place.open().find("reef", 10))
            await asyncio.sleep(0.05)
            group.create_task(place.open().announce(REEF))
        assert found.result() == REEF

    run(scenario)


def test_an_update_is_seen(run: Run):
    async def scenario(place: Place) -> None:
        head, node = place.open(), place.open()
        await head.announce(REEF)
        grown = msgspec.structs.replace(REEF, nodes=3, state="loading layers 0 to 29")
        await head.update(grown)
        await head.update(grown)

        async def seen() -> bool:
            return await node.find("reef", 5) == grown

        await until(seen, 10)

    run(scenario)


def test_a_cluster_that_is_shown_is_found_as_ever(run: Run):
    async def scenario(place: Place) -> None:
        head, node = place.open(), place.open()
        head.show(lambda: topology(cluster_node()))
        await head.announce(REEF)
        assert await node.find("reef", 5) == REEF
        assert await node.find(None, 5) == REEF
        await head.withdraw()
        with pytest.raises(ClusterError):
            await node.find("reef", 1.5)

    run(scenario)


def test_what_is_withdrawn_is_found_no_more(run: Run):
    async def scenario(place: Place) -> None:
        head, node = place.open(), place.open()
        await head.announce(REEF)
        assert await node.find("reef", 5) == REEF
        await head.withdraw()
        await head.withdraw()
        with pytest.raises(ClusterError, match=r"no cluster called reef answered .*`shoal serve`.*`shoal join HOST:PORT`"):
            await node.find("reef", 1.5)
        with pytest.raises(ClusterError, match=r"no cluster answered"):
            await node.find(None, 1.5)

    run(scenario)


def test_a_head_can_announce_again_after_it_withdrew(run: Run):
    async def scenario(place: Place) -> None:
        head = place.open()
        await head.announce(REEF)
        await head.withdraw()
        await head.announce(LAGOON)
        assert await place.open().find(None, 5) == LAGOON

    run(scenario)


def test_closing_withdraws(run: Run):
    async def scenario(place: Place) -> None:
        head = place.open()
        await head.announce(REEF)
        await head.close()
        with pytest.raises(ClusterError):
            await place.open().find("reef", 1.5)

    run(scenario)


def test_of_two_clusters_one_must_be_named(run: Run):
    async def scenario(place: Place) -> None:
        await asyncio.gather(place.open().announce(REEF), place.open().announce(LAGOON))
        expected = r"(?s)2 clusters answer; choose one .*lagoon at 127\.0\.0\.1:7520.*reef at 127\.0\.0\.1:7420"
        searches = (place.open().find(name, 5) for name in (None, "lagoon", "reef"))
        either, lagoon, reef = await asyncio.gather(*searches, return_exceptions=True)
        assert isinstance(either, ClusterError) and re.search(expected, str(either))
        assert (lagoon, reef) == (LAGOON, REEF)

    run(scenario)


def test_only_what_was_announced_can_be_updated_and_keeps_its_name(run: Run):
    async def scenario(place: Place) -> None:
        head = place.open()
        with pytest.raises(LocalProtocolError, match="never announced"):
            await head.update(REEF)
        await head.announce(REEF)
        with pytest.raises(LocalProtocolError, match="cannot become lagoon"):
            await head.update(LAGOON)

    run(scenario)


def test_what_cannot_be_a_name_is_not_looked_for(run: Run):
    async def scenario(place: Place) -> None:
        with pytest.raises(ConfigError, match="cannot be a cluster's name"):
            await place.open().find("*", 5)

    run(scenario)


def test_garbage_is_ignored_and_logged_once(run_outside: Run):
    async def scenario(place: Place) -> None:
        await place.litter()
        with structlog.testing.capture_logs() as logs:

            async def ignored() -> bool:
                return any("junk" in entry["source"] for entry in logs if entry["event"] == "an advert is ignored")

            search = asyncio.create_task(place.open().find(None, 10))
            await until(ignored)
            await place.open().announce(REEF)
            assert await search == REEF
        sources = [entry["source"] for entry in logs if entry["event"] == "an advert is ignored"]
        assert len(set(sources)) == len(sources)

    run_outside(scenario)
