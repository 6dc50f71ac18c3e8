"""Experts on nodes that hold nothing else, with a trained mixture, over HTTP: the answers are those of one node, and streams go on when a
worker is killed, frozen or leaves, whether another one has its experts or not."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from shoal.config import Precision
from shoal.control.client import describe
from shoal.models.weights import GgufWeights
from shoal.text.tokenizer import Tokenizer
from tests.support import chats, upcycled
from tests.support.chats import disturbed
from tests.support.cluster import Cluster, Process, cluster, until
from tests.support.stages import Stages

pytestmark = [pytest.mark.real, pytest.mark.slow]

SKY = [{"role": "user", "content": "Why is the sky blue?"}]
STORY = [{"role": "user", "content": "Write a long story about a sailor and two whales, in many words."}]
SHORT, LONG = 24, 60


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Path:
    return upcycled.mixtral(smollm2, "perturbed")


@pytest.fixture(scope="module")
def wanted(model: Path) -> tuple[str, str]:
    """What one process answers that holds everything."""
    weights = GgufWeights(model)
    tokenizer = Tokenizer.open(model, weights.file.meta)
    stages = Stages(weights, precision=Precision.AUTO, bf16=True, threads=2)
    first, second = (
        tokenizer.decode(stages.afresh().greedy(tokenizer.encode_chat(messages), tokens))
        for messages, tokens in ((SKY, SHORT), (STORY, LONG))
    )
    return first, second


def started(made: Cluster, model: Path, workers: int) -> None:
    """The stage has room for half of the experts; a worker has room for all."""
    made.serve("--min-nodes", str(1 + workers), "--context", "1024", "--model", str(model))
    made.join("--name", "stage", "--memory", "600MiB")
    for i in range(workers):
        made.join("--name", f"worker-{i}", "--role", "experts", "--memory", "3GiB")
    made.until_ready()


def states(made: Cluster) -> dict[str, str]:
    """By node: what it does."""
    return {node.name: node.state for node in asyncio.run(describe(f"127.0.0.1:{made.control_port}")).nodes}


def events(made: Cluster) -> str:
    return "\n".join(asyncio.run(describe(f"127.0.0.1:{made.control_port}")).events)


def node(made: Cluster, name: str) -> Process:
    return next(process for process in made.living if name in process.arguments)


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path) as made:
        yield made
        assert "Traceback" not in made.story()


def answers(made: Cluster) -> tuple[str, str]:
    return chats.answer(made, SKY, SHORT), chats.answer(made, STORY, LONG)


def test_workers_answer_for_a_stage_and_a_replica_takes_over(made: Cluster, model: Path, wanted: tuple[str, str]) -> None:
    started(made, model, 2)
    assert all("experts" in state for name, state in states(made).items() if name.startswith("worker"))
    assert answers(made) == wanted
    assert disturbed(made, "worker-1", STORY, LONG) == wanted[1]
    until(lambda: "other workers have its experts; streams go on" in events(made), made.story)  # the head may learn of it last
    assert answers(made) == wanted
    made.join("--name", "worker-2", "--role", "experts", "--memory", "3GiB")
    until(lambda: "experts" in states(made).get("worker-2", ""), made.story)
    made.until_ready()
    assert answers(made) == wanted
    assert disturbed(made, "worker-0", STORY, LONG) == wanted[1]


def test_experts_that_nobody_else_has_are_read_from_disk(made: Cluster, model: Path, wanted: tuple[str, str]) -> None:
    """The stage has no room for them."""
    started(made, model, 1)
    assert "experts" in states(made)["worker-0"]
    assert answers(made) == wanted
    assert disturbed(made, "worker-0", STORY, LONG) == wanted[1]
    assert answers(made) == wanted
    made.join("--name", "worker-1", "--role", "experts", "--memory", "3GiB")
    until(lambda: "experts" in states(made).get("worker-1", ""), made.story)
    assert answers(made) == wanted


def test_what_a_frozen_worker_has_is_asked_of_another_one(made: Cluster, model: Path, wanted: tuple[str, str]) -> None:
    started(made, model, 2)
    assert answers(made) == wanted
    for name in ("worker-0", "worker-1"):
        frozen = node(made, name)
        frozen.signal(signal.SIGSTOP)
        try:
            assert chats.answer(made, STORY, LONG) == wanted[1]
        finally:
            frozen.signal(signal.SIGCONT)
        until(lambda: sum("experts" in state for state in states(made).values()) == 2, made.story)
        made.until_ready()
    assert answers(made) == wanted


def test_a_worker_may_leave(made: Cluster, model: Path, wanted: tuple[str, str]) -> None:
    started(made, model, 1)
    worker = node(made, "worker-0")
    worker.signal(signal.SIGTERM)
    assert chats.answer(made, STORY, LONG) == wanted[1]
    assert worker.wait() == 0
    assert answers(made) == wanted


def test_workers_alone_serve_nothing_and_say_so(made: Cluster, model: Path) -> None:
    made.serve("--min-nodes", "1", "--model", str(model))
    made.join("--name", "worker-0", "--role", "experts")
    made.head.until_said("all nodes were started with --role experts; a model needs at least one that runs layers")
    made.join("--name", "stage", "--memory", "3GiB")
    made.until_ready()


def test_with_degrade_a_stream_goes_on_without_experts_and_says_so(made: Cluster, model: Path, wanted: tuple[str, str]) -> None:
    """The stage has no room for them, and the only worker is stopped: no other plan is possible before it counts as lost."""
    made.serve("--min-nodes", "2", "--context", "1024", "--model", str(model), "--degrade")
    made.join("--name", "stage", "--memory", "600MiB")
    made.join("--name", "worker-0", "--role", "experts", "--memory", "3GiB")
    made.until_ready()
    body = {"messages": STORY, "max_tokens": LONG, "temperature": 0, "ignore_eos": True}
    whole = made.http.post("/v1/chat/completions", json=body).json()
    assert "degraded_tokens" not in whole["usage"]
    frozen = node(made, "worker-0")
    frozen.signal(signal.SIGSTOP)
    try:
        lacking = made.http.post("/v1/chat/completions", json=body).json()
    finally:
        frozen.signal(signal.SIGCONT)
    assert 0 < lacking["usage"]["degraded_tokens"] <= lacking["usage"]["total_tokens"]
    assert lacking["usage"]["completion_tokens"] == LONG
    until(lambda: "experts" in states(made).get("worker-0", ""), made.story)
    made.until_ready()
    assert answers(made) == wanted


def test_stages_and_workers_know_each_other_by_certificates(made: Cluster, model: Path, wanted: tuple[str, str], tmp_path: Path) -> None:
    """With codes, each on a machine of its own; and whoever has no certificate is not heard."""
    homes: dict[str, str] = {}
    for name in ("head", "stage", "worker-0"):
        homes[name] = str(tmp_path / f"home-{name}")
        (tmp_path / f"home-{name}").mkdir()
    head = made.start(
        "-v", "serve", "--secure", "--min-nodes", "2", "--context", "1024", "--discovery", "none", "--port", str(made.port),
        "--control-port", str(made.control_port), "--model", str(model), SHOAL_CACHE=homes["head"],
    )  # fmt: skip
    made.replace_head(head)

    def codes() -> list[str]:
        """Each can be used once."""
        return list(dict.fromkeys(re.findall(r"pairing code (\S+),", head.said)))

    for used, (name, flags) in enumerate((("stage", ("--memory", "600MiB")), ("worker-0", ("--role", "experts", "--memory", "3GiB")))):
        until(lambda used=used: len(codes()) > used, made.story)
        made.join("--name", name, "--code", codes()[-1], *flags, SHOAL_CACHE=homes[name])
        until(lambda name=name: f"{name} joined" in head.said, made.story)
    made.until_ready()
    assert answers(made) == wanted
    (worker,) = (process for process in made.nodes if "worker-0" in process.arguments)
    ports = {at.laddr.port for at in psutil.Process(worker.popen.pid).net_connections("tcp") if at.status == psutil.CONN_LISTEN}
    assert ports
    for port in ports:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as plain:
            plain.sendall(bytes(64))
            plain.settimeout(60)
            with contextlib.suppress(ConnectionError):
                assert b"shoal" not in plain.recv(4096), "no greeting without a certificate"
    assert answers(made) == wanted
