"""What a head publishes in a real Redis, as subscribers see it: nodes that come, their tables, their load under a request, a worker that is
killed, a head that is killed, Redis that is restarted. Nobody asks the head."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support import chats, upcycled
from tests.support.cluster import Cluster, Process, cluster, until
from tests.support.redis_server import RedisServer
from tests.support.topologies import numbers

pytestmark = [pytest.mark.real, pytest.mark.slow]

CLUSTER = "reef"
STORY = [{"role": "user", "content": "Write a long story about a sailor and two whales, in many words."}]


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Path:
    return upcycled.mixtral(smollm2, "perturbed")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path) as made:
        yield made
        assert "Traceback" not in made.story()


class Follower:
    """`shoal nodes --discovery … --follow --json`: what it printed."""

    def __init__(self, folder: Path, server: RedisServer, name: str) -> None:
        self._log = folder / f"{name}.jsonl"
        command = [sys.executable, "-m", "shoal", "nodes", "--discovery", server.url, "--cluster", CLUSTER, "--follow", "--json"]
        with self._log.open("wb") as out, (folder / f"{name}.err").open("wb") as err:
            self.popen = subprocess.Popen(
                command,
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
            )

    @property
    def lines(self) -> list[dict[str, Any]]:
        text = self._log.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def until(self, what: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """The first line for which it is true."""
        return until(lambda: next((line for line in self.lines if what(line)), None), lambda: self._log.read_text())

    def until_kind(self, kind: str, node: str | None = None) -> dict[str, Any]:
        return self.until(lambda line: line.get("kind") == kind and line.get("node") == node)

    def end(self) -> int:
        self.popen.send_signal(signal.SIGINT)
        return self.popen.wait()


@pytest.fixture
def follow(tmp_path: Path, server: RedisServer) -> Iterator[Callable[[str], Follower]]:
    begun: list[Follower] = []

    def begin(name: str) -> Follower:
        begun.append(Follower(tmp_path, server, name))
        return begun[-1]

    yield begin
    for follower in begun:
        follower.popen.kill()
        follower.popen.wait()


def serve(made: Cluster, server: RedisServer, model: Path) -> Process:
    flags = ("--port", str(made.port), "--control-port", str(made.control_port), "--discovery", server.url, "--cluster", CLUSTER)
    return made.start("serve", *flags, "--min-nodes", "2", "--context", "1024", "--model", str(model))


def worker(made: Cluster, name: str) -> Process:
    return made.join("--name", name, "--role", "experts", "--memory", "3GiB")


def value(client: redis.Redis, key: str) -> Any:
    data = client.get(f"shoal:{key}")
    assert data is None or isinstance(data, bytes)
    return json.loads(data) if data else None


def test_a_cluster_can_be_followed_without_asking_the_head(
    made: Cluster, server: RedisServer, model: Path, follow: Callable[[str], Follower]
) -> None:
    head = serve(made, server, model)
    with redis.Redis(port=server.port) as client:
        until(lambda: value(client, f"route:{CLUSTER}"), made.story)
        early = follow("early")
        assert early.until(lambda line: "route" in line)["route"]["state"] == "waiting"
        made.join("--name", "stage", "--memory", "600MiB")
        worker(made, "worker-0")
        made.until_ready()

        assert early.until_kind("joined", "stage")["state"]["role"] == "layers"
        early.until_kind("joined", "worker-0")
        serving = early.until(lambda line: line.get("kind") == "route" and line["route"]["state"] == "serving")["route"]
        assert serving["stages"] == [{"node": "stage", "layers": "0-29"}] and serving["workers"] == ["worker-0"]
        held = until(lambda: (state := value(client, f"node:{CLUSTER}:worker-0"))["state"] == "serving" and state, made.story)
        table = [numbers(layers) for layers in held["experts"]]
        assert set().union(*table) == set(range(30))
        assert sum(len(numbers(layers)) * len(numbers(experts)) for layers, experts in held["experts"].items()) == held["held"] > 0
        assert held["round_trip"] > 0 and held["memory"] > held["weights"] > 0
        assert value(client, f"node:{CLUSTER}:stage")["layers"] == "0-29"

        chats.answer(made, STORY, 60)
        early.until(lambda line: line.get("requests", {}).get("running") == 1)
        early.until(lambda line: line.get("loads", {}).get("worker-0", {}).get("rows", 0) > 0)
        early.until(lambda line: line.get("loads", {}).get("worker-0", {}).get("busy", 0) > 0)
        assert made.total("node_busy", node="worker-0") >= 0 and made.total("worker_balance", node="worker-0") == 1
        assert made.total("worker_computed_seconds_total", node="worker-0") > 0

        worker(made, "worker-1")
        early.until_kind("joined", "worker-1")
        late = follow("late")
        assert {node["name"] for node in late.until(lambda line: "nodes" in line)["nodes"]} == {"stage", "worker-0", "worker-1"}
        victim = next(node for node in made.living if "worker-0" in node.arguments)
        victim.signal(signal.SIGKILL)
        for follower in (early, late):
            follower.until_kind("lost", "worker-0")
        until(lambda: value(client, f"node:{CLUSTER}:worker-0") is None)
        numbered = [line["seq"] for line in early.lines if "seq" in line]
        assert numbered == sorted(set(numbered))

        server.stop()
        chats.answer(made, STORY, 8)
        server.start()
        until(lambda: value(client, f"route:{CLUSTER}"), made.story)
        assert value(client, f"node:{CLUSTER}:stage")["number"] and value(client, f"node:{CLUSTER}:worker-1")
        made.join("--name", "worker-2", "--role", "experts", "--memory", "3GiB")
        for follower in (early, late):
            follower.until_kind("joined", "worker-2")

        head.signal(signal.SIGKILL)
        head.wait()
        for follower in (early, late):
            follower.until_kind("silent")
            assert follower.end() == 130
        until(lambda: client.keys("shoal:*") == [])
    shown = made.start("nodes", "--discovery", server.url, "--cluster", CLUSTER)
    assert shown.wait() == 1 and "is silent" in shown.said


def test_every_copy_is_published(made: Cluster, server: RedisServer, smollm2: Path, follow: Callable[[str], Follower]) -> None:
    flags = ("--port", str(made.port), "--control-port", str(made.control_port), "--discovery", server.url, "--cluster", CLUSTER)
    made.start("serve", *flags, "--min-nodes", "2", "--replicas", "2", "--context", "1024", "--model", str(smollm2))
    for name in ("left", "right"):
        made.join("--name", name, "--memory", "600MiB")
    made.until_ready()
    with redis.Redis(port=server.port) as client:
        until(
            lambda: [copy["state"] for copy in value(client, f"route:{CLUSTER}").get("others", [])] == ["serving"],
            made.story,
        )
        record = value(client, f"route:{CLUSTER}")
    (copy,) = record["others"]
    assert copy["replica"] == 2 and copy["model"] == record["route"]["model"]
    holders = [stages[0]["node"] for stages in (record["route"]["stages"], copy["stages"])]
    assert sorted(holders) == ["left", "right"]
    shown = made.start("nodes", "--discovery", server.url, "--cluster", CLUSTER)
    assert shown.wait() == 0
    assert f"{copy['model']}/2: serving" in shown.said and f"{holders[1]} 0-29" in shown.said

    follower = follow("copies")
    (first,) = follower.until(lambda line: "nodes" in line)["others"]
    assert first["replica"] == 2
    assert made.start("models", "load", str(smollm2), "--replicas", "1", "--url", made.url).wait() == 0
    assert follower.until(lambda line: line.get("kind") == "route" and "others" in line)["others"] == []
