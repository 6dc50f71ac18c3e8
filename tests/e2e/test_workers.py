"""The API served by several real processes: what they say, and what becomes of streams and processes when one is killed.

One node serves three heads, one after another: the first without workers, two with them. The tests follow each other.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import pytest

from tests.support.api_workers import serves, workers
from tests.support.cluster import BOUND, Cluster, cluster, gone, until
from tests.support.restarts import BODIES, Client, said
from tests.support.stories import open_story, reset, streaming

pytestmark = [pytest.mark.real, pytest.mark.slow]

FLAGS = ("--slots", "8", "--context", "512")


def server_of(made: Cluster, port: int) -> psutil.Process:
    (worker,) = (w for w in workers(made) if serves(w, port))
    return worker


def port_of(client: Client) -> int:
    return int(client._answer.extensions["network_stream"].get_extra_info("client_addr")[1])


def reconnect(made: Cluster) -> None:
    """Connections of a process that was killed are of no use any more."""
    made.http.close()
    made.http = httpx.Client(base_url=made.url, timeout=BOUND, trust_env=False)


def serve_with_workers(made: Cluster, state: Path) -> None:
    made.replace_head(made.serve(*FLAGS, "--api-workers", "2", "--state", str(state)))


def kill_head(made: Cluster) -> None:
    made.head.signal(signal.SIGKILL)
    made.head.wait()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("workers")) as made:
        made.serve(*FLAGS)
        made.join("--name", "n0")
        made.until_ready()
        yield made


@pytest.fixture(scope="module")
def alone(made: Cluster) -> list[Any]:
    """What a head says by itself."""
    return said(made)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def shared(made: Cluster, alone: list[Any], state: Path) -> Cluster:
    """With workers from now on."""
    kill_head(made)
    reconnect(made)
    serve_with_workers(made, state)
    made.until_ready()
    return made


@pytest.fixture
def two(shared: Cluster) -> Iterator[Cluster]:
    """Two workers, which again are two when the test is over, and hold nothing."""
    until(lambda: len(workers(shared)) == 2, shared.story)
    yield shared
    until(lambda: len(workers(shared)) == 2, shared.story)
    shared.until_idle()


def test_workers_say_what_the_head_says_alone(two: Cluster, alone: list[Any]) -> None:
    assert said(two) == alone
    assert two.metric("generated_tokens_total") > 0


def test_every_worker_has_its_clients(two: Cluster) -> None:
    clients = [httpx.Client(base_url=two.url, trust_env=False) for _ in range(24)]
    for client in clients:
        assert client.get("/health/live").status_code == 200
    held = [len(worker.net_connections("tcp")) - 1 for worker in workers(two)]  # without the socket that listens
    for client in clients:
        client.close()
    assert min(held) > 0, held


def test_a_named_stream_goes_on_with_another_worker(two: Cluster, alone: list[Any]) -> None:
    clients = [Client(two, i) for i in range(len(BODIES))]
    for client in clients:
        client.begin()
    dying = server_of(two, port_of(clients[0]))
    lost = [client for client in clients if serves(dying, port_of(client))]
    dying.kill()
    for client in clients:
        if client in lost:
            client.lose()
        else:
            for line in client._lines:
                client._take(line)
    reconnect(two)
    for client in lost:
        client.go_on()
    for client, right in zip(clients, alone, strict=True):
        assert [client.texts[i] for i in range(len(right))] == right
        assert client.done
        assert len(set(client.ids)) == len(client.ids), "an event came twice"


def test_unnamed_streams_of_a_dead_worker_leave_no_slot_behind(two: Cluster) -> None:
    stories = [open_story(two, stream=True) for _ in range(6)]
    until(lambda: two.metric("sequences_running") == 6)
    dying = server_of(two, stories[0].getsockname()[1])
    lost = [story for story in stories if serves(dying, story.getsockname()[1])]
    dying.kill()
    reconnect(two)
    for story in lost:
        reset(story)
    until(lambda: two.metric("sequences_running") == len(stories) - len(lost))
    for story in stories:
        if story not in lost:
            reset(story)


def test_a_worker_that_hangs_holds_back_nobody_else(two: Cluster) -> None:
    hung = workers(two)[0]
    hung.suspend()
    try:
        story = until(lambda: (s := open_story(two, stream=True)) and not serves(hung, s.getsockname()[1]) and s)
        until(lambda: story.recv(1 << 16))
        reset(story)
    finally:
        hung.resume()


def test_streams_go_on_with_the_workers_of_another_head(two: Cluster, alone: list[Any], state: Path) -> None:
    clients = [Client(two, i, "over-heads") for i in range(len(BODIES))]
    for client in clients:
        client.begin()
    kill_head(two)
    for client in clients:
        client.lose()
    reconnect(two)
    serve_with_workers(two, state)
    until(lambda: two.answers("/health/live"), two.story)
    for client in clients:
        client.go_on()
    assert [[client.texts[i] for i in range(len(client.texts))] for client in clients] == alone
    assert all(client.done for client in clients)


def test_a_head_that_is_told_to_end_lets_the_workers_streams_end(shared: Cluster) -> None:
    """The last test of this cluster."""
    until(lambda: len(workers(shared)) == 2, shared.story)
    family = [*shared.head.family(), *shared.nodes[0].family()]
    with ThreadPoolExecutor(1) as pool:
        stream = streaming(shared, pool, 200)
        shared.head.signal(signal.SIGTERM)
        assert stream.result(BOUND)[-1] == "[DONE]"
    assert shared.head.wait() == 0
    assert "1 request(s) have 30 s to end" in shared.head.said
    gone(family)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_all_processes_end_with_the_head(tmp_path: Path, number: signal.Signals) -> None:
    with cluster(tmp_path) as made:
        head = made.up(*FLAGS, "--nodes", "1", "--api-workers", "2", "--grace", "0")
        made.until_ready()
        until(lambda: len(workers(made)) == 2, made.story)
        family = head.family()
        story = open_story(made, stream=True)
        until(lambda: made.metric("sequences_running") == 1)
        made.http.close()
        head.signal(number)
        heard = b""
        while part := story.recv(1 << 16):
            heard += part
        story.close()
        assert head.wait() == (-number if number is signal.SIGKILL else 0)
        gone(family)
        assert (b"the server is shutting down" in heard) == (number is not signal.SIGKILL)
