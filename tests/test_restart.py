"""The head is killed in the middle of streams, started again, and they go on: real processes, trained weights."""

from __future__ import annotations

import json
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from shoal.pipeline import records
from tests.support.cluster import Cluster, cluster, until

pytestmark = [pytest.mark.real, pytest.mark.slow]

TOKENS = 240
FLAGS = ("--min-nodes", "2", "--spread", "--lanes", "8", "--context", "512")
BODIES: list[dict[str, Any]] = [
    {"prompt": "The capital of France is", "temperature": 0},
    {"prompt": "1, 2, 3,", "temperature": 0, "frequency_penalty": 0.4, "repetition_penalty": 1.1},
    {"prompt": "A story about the sea:", "temperature": 1, "seed": 11, "n": 2},
]


class Client:
    """Reads a stream from several heads, one event after another."""

    def __init__(self, made: Cluster, number: int) -> None:
        self._made, self.id = made, f"client-{number}"
        self._body = {**BODIES[number], "max_tokens": TOKENS, "stream": True, "stream_options": {"include_usage": True}}
        self.ids: list[str] = []
        self.texts: dict[int, str] = {}
        self.usage: dict[str, Any] = {}
        self.done = False

    def begin(self) -> None:
        """Reads a few events, and leaves the rest of them where they are."""
        self._stream = self._made.http.stream("POST", "/v1/completions", json=self._body, headers={"X-Request-Id": self.id})
        self._answer = self._stream.__enter__()
        assert self._answer.status_code == 200
        self._lines = self._answer.iter_lines()
        while len(self.ids) < 6:
            self._take(next(self._lines))

    def lose(self) -> None:
        """The connection breaks; what had come before counts."""
        try:
            for line in self._lines:
                self._take(line)
        except httpx.TransportError:
            pass
        self._stream.__exit__(None, None, None)
        assert not self.done

    def come_back(self) -> None:
        """Reads one more event after those that came."""
        seen = len(self.ids)
        self._stream = self._made.http.stream("GET", f"/v1/streams/{self.id}", headers={"Last-Event-ID": self.ids[-1]})
        self._answer = self._stream.__enter__()
        assert self._answer.status_code == 200, self._answer.read()
        self._lines = self._answer.iter_lines()
        while len(self.ids) <= seen:
            self._take(next(self._lines))

    def go_on(self) -> None:
        self.come_back()
        for line in self._lines:
            self._take(line)
        self._stream.__exit__(None, None, None)

    def _take(self, line: str) -> None:
        if line.startswith("id: "):
            self.ids.append(line[4:])
        elif line == "data: [DONE]":
            self.done = True
        elif line.startswith("data: "):
            event = json.loads(line[6:])
            assert "error" not in event, event
            self.usage = event.get("usage") or self.usage
            for choice in event["choices"]:
                self.texts[choice["index"]] = self.texts.get(choice["index"], "") + choice["text"]


def join(made: Cluster, name: str) -> None:
    """A node that says what it does."""
    flags = ("--threads", "1", "--memory", "1GiB", "--runtime", "native", "--name", name)
    made.nodes.append(made.start("--verbose", "join", f"127.0.0.1:{made.control_port}", *flags))


def assert_logged(client: Client, state: Path) -> None:
    """What the client saw is in the file, but for what was drawn in the last hundredths of a second."""
    ledger, _ = records.read((state / "requests").read_bytes())
    (said,) = ledger.answers[client.id].said
    for choice, seen in enumerate(map(int, client.ids[-1].split("."))):
        assert seen - 8 <= sum(chunk.choice == choice for chunk in said)


def layers(made: Cluster) -> dict[str, tuple[int, int]]:
    shown = made.start("nodes", "--head", f"127.0.0.1:{made.control_port}", "--json")
    assert shown.wait() == 0, shown.describe()
    found, _ = json.JSONDecoder().raw_decode(shown.said, shown.said.index("{\n"))  # beside what gRPC logs
    return {node["name"]: (node["first_layer"], node["last_layer"]) for node in found["nodes"]}


def test_streams_go_on_when_the_head_is_killed_and_started_again(tmp_path: Path) -> None:
    with cluster(tmp_path) as made:
        flags = (*FLAGS, "--state", str(tmp_path / "state"))
        made.serve(*flags)
        for name in ("n0", "n1"):
            join(made, name)
        made.until_ready()
        whole = [made.texts(body["prompt"], TOKENS, **{k: v for k, v in body.items() if k != "prompt"}) for body in BODIES]
        before = layers(made)

        clients = [Client(made, i) for i in range(len(BODIES))]
        for client in clients:
            client.begin()
        for kill in range(2):
            if kill:
                for client in clients:
                    client.come_back()
            made.head.signal(signal.SIGKILL)
            made.head.wait()
            for client in clients:
                client.lose()
                assert_logged(client, tmp_path / "state")
            made.replace_head(made.serve(*flags))
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
        made.until_idle()
        assert (tmp_path / "state" / "requests").stat().st_mode & 0o777 == 0o600


def test_what_nobody_comes_back_for_is_ended_after_a_while(tmp_path: Path) -> None:
    with cluster(tmp_path) as made:
        flags = ("--state", str(tmp_path / "state"), "--resume", "1")
        made.serve(*flags)
        join(made, "n0")
        made.until_ready()
        client = Client(made, 2)
        client.begin()
        made.head.signal(signal.SIGKILL)
        made.head.wait()
        client.lose()
        made.replace_head(made.serve(*flags))
        made.until_ready()
        until(lambda: made.http.get("/v1/streams/client-2", params={"after": "999999"}).status_code == 404, made.story)
        made.until_idle()
