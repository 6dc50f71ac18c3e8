"""A head that leads is lost in the middle of streams, and a standby goes on with them: real processes, trained weights."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.gateway.auth.key_store import KeyStore
from tests.support.cluster import MODEL, Cluster, Process, cluster, free_port, until
from tests.support.heads import FLAGS, Heads, heads
from tests.support.redis_server import RedisServer
from tests.support.restarts import BODIES, Client, said

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Heads, RedisServer]]:
    with heads(tmp_path / "heads") as made:
        yield made


def begun(made: Cluster, count: int = len(BODIES)) -> list[Client]:
    clients = [Client(made, i) for i in range(count)]
    for client in clients:
        client.begin()
    return clients


def assert_whole(clients: list[Client], whole: list[list[str]]) -> None:
    for client, right in zip(clients, whole, strict=False):
        assert client.done
        assert [client.texts[i] for i in range(len(right))] == right
        assert len(set(client.ids)) == len(client.ids), "an event came twice"


def go_on(clients: list[Client], made: Cluster) -> None:
    for client in clients:
        client.goes_to(made)
        client.go_on()


def kill(made: Heads, name: str, clients: list[Client]) -> None:
    made.kill(name)
    for client in clients:
        client.lose()


def test_streams_go_on_at_the_standby_when_the_leader_is_killed_and_at_the_next_one(two: tuple[Heads, RedisServer]) -> None:
    made, _ = two
    a, b = made.head("a"), made.head("b")
    whole, nodes = said(a), a.nodes
    refused = b.http.get("/v1/models")
    assert (refused.status_code, b.http.get("/health/live").status_code, b.http.get("/health/ready").status_code) == (503, 200, 503)
    assert made.address("a") in refused.json()["error"]["message"]

    clients = begun(a)
    kill(made, "a", clients)
    made.until_leads("b")
    go_on(clients, b)
    assert_whole(clients, whole)

    made.serve("a")  # as it was started at first: it finds that another one leads
    made.until_copied("a")

    clients = begun_again(b)
    kill(made, "b", clients)
    made.until_leads("a")
    go_on(clients, a)
    assert_whole(clients, whole)
    for node in nodes:
        assert node.popen.poll() is None
        assert node.said.count("the head was lost") == 2 and "Traceback" not in node.said, node.describe()
    a.until_idle()


def begun_again(made: Cluster) -> list[Client]:
    clients = [Client(made, i, "another") for i in range(len(BODIES))]
    for client in clients:
        client.begin()
    return clients


def test_keys_aliases_and_models_are_those_of_the_leader(two: tuple[Heads, RedisServer], tmp_path: Path) -> None:
    made, _ = two
    a, b = made.head("a"), made.head("b")
    alias = a.start("models", "alias", "--url", a.url, "gpt-4o-mini", MODEL)
    assert alias.wait() == 0, alias.describe()
    keys = KeyStore(tmp_path / "heads" / "a" / "data")
    _, token = keys.create("anna", time.time())
    copied = KeyStore(tmp_path / "heads" / "b" / "data")
    until(lambda: [key.name for key in copied.all()] == ["anna"], made.story)
    made.kill("a")
    made.until_leads("b")
    body = {"model": "gpt-4o-mini", "prompt": "Once", "max_tokens": 4}
    assert b.http.post("/v1/completions", json=body).status_code == 401
    answer = b.http.post("/v1/completions", json=body, headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 200, answer.text


def test_the_leader_goes_on_when_its_standby_is_killed(two: tuple[Heads, RedisServer]) -> None:
    made, _ = two
    a = made.head("a")
    whole = said(a)
    clients = begun(a)
    made.kill("b")
    for client in clients:
        client.read_on()
    assert_whole(clients, whole)
    made.stand_by("b", "a")
    made.until_copied("b")
    assert made.leads("a") and not made.leads("b")
    assert all(node.said.count("joined") == 1 for node in a.nodes)


def test_the_keeper_may_be_gone_for_less_than_a_lease_and_if_longer_one_leads_again_when_it_is_back(two: tuple[Heads, RedisServer]) -> None:
    made, redis = two
    a = made.head("a")
    whole = said(a)
    clients = begun(a)
    redis.pause()
    time.sleep(0.5)
    redis.resume()
    for client in clients:
        client.read_on()
    assert_whole(clients, whole)
    assert all(node.said.count("joined") == 1 for node in a.nodes), made.story()

    redis.pause()
    time.sleep(2)  # of the lease's four
    clients = begun_again(a)
    a.head.until_said("leads no more")
    for client in clients:
        client.read_until_lost()
    assert not made.leads("a") and not made.leads("b")
    redis.resume()
    leader = made.head(made.until_leads("a", "b"))
    go_on([client for client in clients if not client.done], leader)
    assert_whole(clients, whole)


def test_a_leader_that_was_stopped_leads_no_more_when_it_goes_on(two: tuple[Heads, RedisServer]) -> None:
    made, _ = two
    a, b = made.head("a"), made.head("b")
    whole = said(a)
    clients = begun(a)
    a.head.signal(signal.SIGSTOP)
    made.until_leads("b")
    a.head.signal(signal.SIGCONT)
    for client in clients:
        client.lose()
    go_on(clients, b)
    assert_whole(clients, whole)
    a.head.until_said("leads no more")
    made.until_copied("a")
    assert made.leads("b") and not made.leads("a")


def test_a_leader_that_is_told_to_stop_leaves_the_cluster_to_its_standby(two: tuple[Heads, RedisServer]) -> None:
    made, _ = two
    a, b = made.head("a"), made.head("b")
    whole = said(a)
    clients = begun(a)
    a.head.signal(signal.SIGTERM)
    for client in clients:
        client.lose()
    assert a.head.wait() == 0, a.head.describe()
    made.until_leads("b")
    go_on(clients, b)
    assert_whole(clients, whole)
    assert all(node.popen.poll() is None for node in a.nodes)


@pytest.mark.parametrize("replicate", ["before", "after"])
def test_tokens_wait_for_a_standby_that_was_stopped_only_where_they_are_to(tmp_path: Path, replicate: str) -> None:
    with heads(tmp_path / "heads", *FLAGS, "--replicate", replicate) as (made, _):
        a, b = made.head("a"), made.head("b")
        whole = said(a)
        b.head.signal(signal.SIGSTOP)
        assert said(a) == whole
        assert ("it has not answered for 1 s" in a.head.said) == (replicate == "before"), a.head.describe()


@pytest.mark.parametrize("standbys", [0, 1])
def test_an_interrupt_ends_a_head_that_leads(tmp_path: Path, standbys: int) -> None:
    with heads(tmp_path / "heads", standbys=standbys) as (made, _):
        a = made.head("a")
        said(a)  # by then the nodes know of the standby
        a.head.signal(signal.SIGINT)
        assert a.head.wait() == 0, a.head.describe()
        assert a.head.said.count("leads by term") == 1
        if standbys:
            made.until_leads("b")
            assert (made.led("a"), made.led("b")) == (None, 2)
        else:
            assert [node.wait() for node in a.nodes] == [0, 0]  # they were sent home
            assert made.led("a") == 1


def test_a_head_that_begins_again_after_another_one_led_says_what_it_does_not_know(two: tuple[Heads, RedisServer]) -> None:
    made, _ = two
    said(made.head("a"))  # by then the nodes know of b
    made.kill("a")
    made.until_leads("b")
    assert (made.led("a"), made.led("b")) == (1, 2)
    made.kill("b")
    again = made.serve("a")
    again.until_said("another head led meanwhile")
    made.until_leads("a")
    assert made.led("a") == 3


def test_of_several_standbys_one_leads_and_the_others_follow_it(tmp_path: Path) -> None:
    with heads(tmp_path / "heads", standbys=2) as (made, _):
        whole = said(made.head("a"))
        clients = begun(made.head("a"))
        kill(made, "a", clients)
        leader = made.until_leads("b", "c")
        go_on(clients, made.head(leader))
        assert_whole(clients, whole)
        last = {"b": "c", "c": "b"}[leader]
        until(lambda: made.address(leader) in made.head(last).head.said.rpartition("stands by for the head at")[2], made.story)
        clients = begun_again(made.head(leader))
        kill(made, leader, clients)
        made.until_leads(last)
        go_on(clients, made.head(last))
        assert_whole(clients, whole)


def code_of(head: Process) -> str:
    """The pairing code that it showed last."""
    return until(lambda: re.findall(r"pairing code (\S+),", head.said), head.describe)[-1]


def test_a_standby_of_a_protected_cluster_pairs_once_and_then_admits_nodes(tmp_path: Path) -> None:
    """Every process keeps its keys in a folder of its own, as on machines of their own."""
    redis = RedisServer(tmp_path)
    made = Heads(tmp_path, redis.url, "--secure", "--min-nodes", "1")
    try:
        first = made.serve("a")
        a, b = made.head("a"), made.head("b")
        a.join("--name", "n0", "--code", code_of(first), SHOAL_HOME=str(tmp_path / "n0"))
        a.until_ready()
        made.serve("b", "--standby", made.address("a"), "--code", code_of(first))
        made.until_copied("b")
        b.head.end()
        made.stand_by("b", "a")  # it has paired
        made.until_copied("b")
        made.kill("a")
        made.until_leads("b")
        assert b.texts("The capital of France is", tokens=4)
        b.join("--name", "n1", "--code", code_of(b.head), SHOAL_HOME=str(tmp_path / "n1"))
        b.nodes[-1].until_said(f"joined {made.address('b')} as n1")
    finally:
        made.end()
        redis.stop()


def test_a_standby_needs_a_keeper_of_the_lease(tmp_path: Path) -> None:
    with cluster(tmp_path) as made:
        process = made.serve("--standby", "127.0.0.1:7420")
        assert process.wait() == 2
        assert "--standby needs --lease" in process.said


def test_a_gateway_goes_on_with_the_head_that_leads(tmp_path: Path) -> None:
    folder = tmp_path / "others"
    with heads(folder, *FLAGS, "--gateway-port", str(free_port()), standbys=0) as (made, _):
        made.flags = (*made.flags[:-1], str(free_port()))
        made.stand_by("b", "a")
        made.until_copied("b")
        way = made.head("way")
        flags = ("--port", str(way.port), "--data", str(folder / "way" / "data"))
        gateway = way.start("gateway", made.address("b"), made.address("a"), *flags)
        gateway.until_said(f"serving for the head at {made.address('a')}")
        whole = said(way)
        assert whole == said(made.head("a"))

        clients = begun(way)
        kill(made, "a", clients)
        gateway.until_said(f"serving for the head at {made.address('b')}")
        made.until_leads("b")
        until(lambda: way.http.get("/health/ready").status_code == 200, made.story)
        go_on(clients, way)
        assert_whole(clients, whole)
