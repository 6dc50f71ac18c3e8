"""Experts on nodes that hold nothing else, with a trained mixture, over HTTP: the answers are those of one node, and streams go on when a
worker is killed, frozen or leaves, whether another one has its experts or not."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import signal
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from shoal.config import KvType, Precision
from shoal.control.client import describe
from shoal.models.weights import GgufWeights
from shoal.observed.event import EventKind
from shoal.text.tokenizer import Tokenizer
from tests.support import chats, upcycled
from tests.support.chats import disturbed
from tests.support.cluster import Cluster, Process, cluster, until
from tests.support.control_groups import group
from tests.support.stages import Stages
from tests.support.streamed import damage

pytestmark = [pytest.mark.real, pytest.mark.slow]

SKY = [{"role": "user", "content": "Why is the sky blue?"}]
STORY = [{"role": "user", "content": "Write a long story about a sailor and two whales, in many words."}]
SHORT, LONG = 24, 60
HALF = 330 << 20
"""Bytes with which a worker has room for nearly half of the experts."""
QUARTER = 250 << 20
"""For a quarter: two of these read from disk, however the plan deals."""


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Path:
    return upcycled.mixtral(smollm2, "perturbed")


@pytest.fixture(scope="module")
def wanted(model: Path) -> tuple[str, str]:
    """What one process answers that holds everything."""
    weights = GgufWeights(model)
    tokenizer = Tokenizer.open(model, weights.file.meta)
    stages = Stages(weights, precision=Precision.AUTO, kv_type=KvType.BF16, threads=2)
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


@pytest.fixture
def packed(tmp_path: Path) -> Iterator[Path]:
    """A folder for packed files. Large files are not kept when a test is over."""
    yield tmp_path / "packed"
    shutil.rmtree(tmp_path / "packed")


def half_held(made: Cluster, model: Path, packed: Path, before: Sequence[str] = ()) -> None:
    """The stage has room for no experts and may read none from disk; the worker has room for half of them. before: what runs the worker."""
    made.serve("--min-nodes", "2", "--context", "1024", "--model", str(model))
    made.join("--name", "stage", "--memory", "500MiB", "--packed-cache", "none")
    experts = ("--role", "experts", "--packed-cache", str(packed), "--memory", f"{HALF}")
    made.join_from(before, f"127.0.0.1:{made.control_port}", "--name", "worker-0", *experts)
    made.until_ready()


def test_a_worker_reads_from_disk_what_its_memory_has_no_room_for(
    made: Cluster, model: Path, wanted: tuple[str, str], packed: Path
) -> None:
    with group({"memory.limit_in_bytes": f"{HALF}", "memory.max": f"{HALF}"}, "memory") as limited:
        half_held(made, model, packed, limited.entering)
        assert answers(made) == wanted
        worker = next(node for node in asyncio.run(describe(f"127.0.0.1:{made.control_port}")).nodes if node.name == "worker-0")
        on_disk = sum(path.stat().st_size for path in packed.rglob("layer-*.packed"))
        (part,) = worker.parts
        assert worker.state == "serving 240 experts" and 0.4 < part.weight_bytes / on_disk < 0.5
        assert part.weight_bytes < limited.peak < HALF
        until(lambda: made.metric("expert_read_bytes_total") > part.weight_bytes, made.story)
        made.end()


def test_a_worker_whose_disk_fails_costs_no_stream(made: Cluster, model: Path, wanted: tuple[str, str], packed: Path) -> None:
    """What it could not read it makes again, with the next route."""
    half_held(made, model, packed)
    assert chats.answer(made, SKY, SHORT) == wanted[0]
    (folder,) = packed.iterdir()
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    damage(folder / "layer-0007.packed")
    assert chats.answer(made, STORY, LONG) == wanted[1]
    worker = node(made, "worker-0")
    assert "layer-0007.packed" in worker.said and "check the disk" in worker.said
    assert {path.name for path, at in before.items() if path.stat().st_mtime_ns != at} == {"layer-0007.packed"}


def test_a_worker_copies_what_another_one_has_packed(made: Cluster, model: Path, wanted: tuple[str, str], packed: Path) -> None:
    """Each node has folders of its own and has paired by a code. The stage has no room for experts, and both workers together not for all."""

    def codes() -> list[str]:
        return list(dict.fromkeys(re.findall(r"pairing code (\S+),", made.head.said)))

    def join(name: str, *flags: str) -> Process:
        until(lambda: len(codes()) > len(made.nodes), made.story)
        return made.join("--name", name, "--code", codes()[-1], *flags, SHOAL_CACHE=str(packed / name))

    def worker(name: str) -> Process:
        return join(name, "--role", "experts", "--memory", f"{QUARTER}", "--packed-cache", str(packed / name / "packed"))

    made.serve("--host", "0.0.0.0", "--min-nodes", "2", "--context", "1024", "--model", str(model))
    join("stage", "--memory", "500MiB", "--packed-cache", "none")
    first = worker("worker-0")
    made.until_ready()
    assert "packing" in first.said and "copying" not in first.said
    assert answers(made) == wanted
    first.until_said("other nodes may copy 30 files of packed weights from here")
    second = worker("worker-1")
    second.until_said("copied 30 of 30 files of packed weights")
    second.until_said("holding")
    made.until_ready()
    assert answers(made) == wanted
    first.signal(signal.SIGKILL)
    first.wait()
    until(lambda: "holding 240 experts" in second.said, made.story)
    made.until_ready()
    assert answers(made) == wanted
    assert "packing" not in second.said
    assert not list(packed.rglob("*.part"))
    here, there = ({path.name: path.read_bytes() for path in (packed / name).rglob("*.packed")} for name in ("worker-0", "worker-1"))
    assert here == there


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
    happened = {event["kind"] for event in made.http.get("/operator/events").json()["events"]}
    assert (EventKind.DEGRADED in happened) == (EventKind.LOST in happened), (
        happened
    )  # unless the answer ended before the worker was given up
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
