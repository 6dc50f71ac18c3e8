"""The head is killed in the middle of streams, started again, and they go on: real processes, trained weights."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from shoal.pipeline import records
from tests.support.cluster import MODEL, Cluster, cluster, until
from tests.support.restarts import BODIES, TOKENS, Client, said

pytestmark = [pytest.mark.real, pytest.mark.slow]

FLAGS = ("--min-nodes", "2", "--spread", "--slots", "8", "--context", "512")


def join(made: Cluster, name: str) -> None:
    """A node that says what it does."""
    flags = ("--threads", "1", "--memory", "1GiB", "--runtime", "native", "--name", name)
    made.nodes.append(made.start("--verbose", "join", f"127.0.0.1:{made.control_port}", *flags))


def assert_logged(client: Client, state: Path) -> None:
    """What the client saw is in the file, but for what was drawn in the last hundredths of a second."""
    ledger, _ = records.read((state / MODEL / "requests").read_bytes())
    (said,) = ledger.answers[client.id].said
    for choice, seen in enumerate(map(int, client.ids[-1].split("."))):
        assert seen - 8 <= sum(chunk.choice == choice for chunk in said)


def layers(made: Cluster) -> dict[str, tuple[int, int]]:
    shown = made.start("nodes", "--head", f"127.0.0.1:{made.control_port}", "--json")
    assert shown.wait() == 0, shown.describe()
    found, _ = json.JSONDecoder().raw_decode(shown.said, shown.said.index("{\n"))  # beside what gRPC logs
    return {node["name"]: (node["first_layer"], node["last_layer"]) for node in found["nodes"]}


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, state: Path) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("restart")) as made:
        made.serve(*FLAGS, "--state", str(state))
        for name in ("n0", "n1"):
            join(made, name)
        made.until_ready()
        yield made


def kill_head(made: Cluster) -> None:
    made.head.signal(signal.SIGKILL)
    made.head.wait()


def test_streams_go_on_when_the_head_is_killed_and_started_again(made: Cluster, state: Path) -> None:
    whole = said(made)
    before = layers(made)

    clients = [Client(made, i) for i in range(len(BODIES))]
    for client in clients:
        client.begin()
    for kill in range(2):
        if kill:
            for client in clients:
                client.come_back()
        kill_head(made)
        for client in clients:
            client.lose()
            assert_logged(client, state)
        made.replace_head(made.serve(*FLAGS, "--state", str(state)))
        until(lambda: made.answers("/health/live"), made.story)
    for client in clients:
        client.go_on()

    for client, right in zip(clients, whole, strict=True):
        assert [client.texts[i] for i in range(len(right))] == right
        assert client.done
        assert len(set(client.ids)) == len(client.ids), "an event came twice"
        counts = [[int(n) for n in id.split(".")] for id in client.ids]
        assert all(sum(b) > sum(a) for a, b in pairwise(counts)), "events are out of order"
    assert clients[0].usage["completion_tokens"] == TOKENS
    assert layers(made) == before
    for node in made.nodes:
        assert node.popen.poll() is None
        assert (node.said.count("weights are read"), node.said.count("joined")) == (1, 3), node.describe()
        assert node.said.count("the head was lost") == 2 and "Traceback" not in node.said, node.describe()
    made.until_idle()
    assert (state / MODEL / "requests").stat().st_mode & 0o777 == 0o600


def test_what_nobody_comes_back_for_is_ended_after_a_while(made: Cluster, state: Path) -> None:
    client = Client(made, 2, "lost")
    client.begin()
    kill_head(made)
    client.lose()
    made.replace_head(made.serve(*FLAGS, "--state", str(state), "--resume", "1"))
    made.until_ready()
    until(lambda: made.http.get(f"/v1/streams/{client.id}", params={"after": "999999"}).status_code == 404, made.story)
    made.until_idle()
