"""A head and nodes on a Ray cluster of several raylets: streams go on when Ray loses an actor, a machine, the head."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import pytest

from shoal.control.client import describe
from shoal.launch.keys import authority
from shoal.security.certificates import Role
from tests.support.cluster import BOUND, MODEL, Process, free_port, gone, until
from tests.support.ray_machines import RayMachines, actors, ray_machines

pytestmark = [pytest.mark.slow, pytest.mark.real]

PROMPT, TOKENS = "Once upon a time there was", 160


class RayUp:
    """One `shoal ray up`."""

    def __init__(self, folder: Path, machines: RayMachines, *flags: str) -> None:
        self.machines = machines
        self._keys = authority().credentials(Role.HEAD, "operator") if "--secure" in flags else None  # in the folder of this run's tests
        self.port, self.control_port = free_port(), free_port()
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=BOUND, trust_env=False)
        ports = (f"--port={self.port}", f"--control-port={self.control_port}")
        room = ("--threads=1", "--memory=512MiB")
        self.process = Process(folder / "up.log", "ray", "up", f"--address={machines.address}", *ports, *room, f"--model={MODEL}", *flags)

    @property
    def said(self) -> str:
        return self.process.describe()

    def head_address(self) -> str:
        """As it was said last."""
        return re.findall(r"the head is at ([\d.:]+)", self.process.said)[-1]

    def layers(self) -> list[int]:
        """How many each node of the cluster has."""
        with contextlib.suppress(Exception):  # the head is being made again
            found = asyncio.run(describe(self.head_address(), self._keys))
            return [sum(part.end_layer - part.first_layer for part in node.parts) for node in found.nodes]
        return []

    def ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self.http.get("/health/ready").status_code == 200
        return False

    def until_nodes(self, count: int) -> None:
        """They serve, each with some layers."""

        def there() -> bool:
            assert self.process.popen.poll() is None, self.said
            return self.ready() and len(found := self.layers()) == count and all(found)

        until(there, lambda: f"{self.layers()}\n{self.said}", bound=4 * BOUND, every=0.2)

    def pieces(self, **options: Any) -> Iterator[str]:
        body = {"prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "stream": True, "ignore_eos": True, **options}
        with self.http.stream("POST", "/v1/completions", json=body) as stream:
            assert stream.status_code == 200, stream.read()
            for line in stream.iter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    assert "error" not in event, event
                    yield event["choices"][0]["text"]

    def answer(self, meanwhile: Callable[[], object] = lambda: None) -> str:
        """The whole of it. meanwhile: is done after the fifth piece."""
        text = ""
        for number, piece in enumerate(self.pieces()):
            text += piece
            if number == 5:
                meanwhile()
        return text

    def command(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "shoal", "ray", *arguments, "--address", self.machines.address]
        done = subprocess.run(command, env={**os.environ}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def end(self) -> None:
        self.http.close()
        self.process.end()


def inside(actor: psutil.Process) -> list[psutil.Process]:
    """shoal's processes of an actor."""
    return actor.children(recursive=True)


def machine_of(actor: psutil.Process) -> str:
    """The address of the raylet that the worker belongs to."""
    words = " ".join(psutil.Process(actor.ppid()).cmdline())
    return re.findall(r"--node_ip_address=([\d.]+)", words)[0]


@pytest.fixture(scope="module")
def machines() -> Iterator[RayMachines]:
    with ray_machines(4) as made:
        yield made


@pytest.fixture(scope="module")
def up(machines: RayMachines, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayUp]:
    made = RayUp(tmp_path_factory.mktemp("ray"), machines, "--nodes=2")
    try:
        made.until_nodes(2)
        yield made
    finally:
        made.end()


@pytest.fixture(scope="module")
def expected(up: RayUp) -> str:
    return up.answer()


def test_each_is_on_a_machine_of_its_own(up: RayUp, expected: str) -> None:
    assert len({machine_of(actor) for kind in ("HeadActor", "NodeActor") for actor in actors(kind)}) == 3
    assert len(expected) > TOKENS


def test_a_stream_goes_on_when_ray_kills_a_nodes_actor(up: RayUp, expected: str) -> None:
    up.until_nodes(2)
    actor = actors("NodeActor")[0]
    processes = inside(actor)
    assert processes
    assert up.answer(actor.kill) == expected
    gone(processes)
    up.until_nodes(2)
    assert up.answer() == expected


def test_a_stream_goes_on_when_a_node_itself_dies(up: RayUp, expected: str) -> None:
    up.until_nodes(2)
    (node,) = inside(actors("NodeActor")[0])
    assert up.answer(node.kill) == expected
    up.until_nodes(2)
    assert "was killed (SIGKILL)" in up.process.said


def test_a_stream_goes_on_when_a_nodes_machine_is_lost(up: RayUp, expected: str) -> None:
    up.until_nodes(2)
    actor = actors("NodeActor")[0]
    processes, machine = inside(actor), machine_of(actor)
    assert up.answer(lambda: up.machines.lose(machine)) == expected
    gone(processes)
    up.until_nodes(2)  # on the machine that was idle
    assert machine not in {machine_of(actor) for actor in actors("NodeActor")}
    up.machines.add()


def test_more_and_fewer_nodes_at_run_time(up: RayUp, expected: str) -> None:
    up.until_nodes(2)
    up.command("scale", "3")
    up.until_nodes(3)
    assert up.answer() == expected
    done = threading.Event()

    def fewer() -> None:
        up.command("scale", "2")
        done.set()

    asking = threading.Thread(target=fewer)
    assert up.answer(asking.start) == expected
    asking.join()
    assert done.is_set()
    until(lambda: len(actors("NodeActor")) == 2, lambda: up.said)
    up.until_nodes(2)


def test_the_head_comes_back_where_its_machine_is_lost(up: RayUp, expected: str) -> None:
    up.until_nodes(2)
    before = up.head_address()
    (head,) = actors("HeadActor")
    processes = inside(head)
    up.machines.lose(machine_of(head))
    gone(processes)
    until(lambda: up.head_address() != before, lambda: up.said, bound=4 * BOUND)
    up.until_nodes(2)
    assert up.answer() == expected


def test_a_wrong_command_is_told_what_is_wrong(up: RayUp, tmp_path: Path) -> None:
    address = f"--address={up.machines.address}"
    for words, why in {
        ("up",): "another `shoal ray up` runs a cluster shoal",
        ("scale", "3", "--cluster=reef"): "no `shoal ray up` runs a cluster reef",
        ("up", "--control-port=0"): "--control-port 0",
    }.items():
        process = Process(tmp_path / "log", "ray", *words, address)
        assert process.wait() == 2 and why in process.said, process.describe()
    assert up.process.popen.poll() is None
    waiting = Process(tmp_path / "log", "ray", "up", "--cluster=large", "--nodes=64", address)
    waiting.until_said("waiting for Ray to have room")
    waiting.signal(signal.SIGTERM)
    assert waiting.wait() == 0, waiting.describe()


def test_nothing_is_left_when_it_is_told_to_end(up: RayUp) -> None:
    up.until_nodes(2)
    processes = [process for kind in ("HeadActor", "NodeActor") for actor in actors(kind) for process in [actor, *inside(actor)]]
    assert len(processes) >= 6
    up.command("down")
    assert up.process.wait() == 0
    gone(processes)
    assert up.process.said.count("Traceback") == 0


def test_a_copy_that_finds_no_room_gets_a_node_of_ray(machines: RayMachines, tmp_path: Path) -> None:
    quick = ("--slots=2", "--context=512", "--scale-up-after=1", "--scale-up-cooldown=1", "--first-token-target=600")
    made = RayUp(tmp_path, machines, "--nodes=1", "--replicas-max=2", "--more-nodes=ray", "--max-nodes=2", *quick)
    over = threading.Event()

    try:
        made.until_nodes(1)
        expected = made.answer()

        def ask() -> None:
            while not over.is_set():
                assert made.answer() == expected

        with ThreadPoolExecutor(5) as pool:
            asked = [pool.submit(ask) for _ in range(5)]
            until(lambda: len(actors("NodeActor")) == 2, lambda: made.said, bound=4 * BOUND)
            made.until_nodes(2)
            over.set()
            for one in asked:
                one.result()
        assert "2 nodes from now on, not 1" in made.process.said
        made.command("scale", "1", "--at-least")
        done = made.http.get("/operator/events", params={"kind": "scaled", "limit": 1000}).json()["events"]
        assert any("Ray is asked for 2 nodes in all" in event["message"] for event in done), done
        assert any(f"{MODEL}/2 is added on" in event["message"] for event in done), done
        assert len(actors("NodeActor")) == 2
    finally:
        over.set()
        made.end()


def test_it_waits_for_machines_and_leaves_nothing_when_it_is_killed(machines: RayMachines, tmp_path: Path) -> None:
    for address in [*machines.raylets][1:]:
        machines.lose(address)
    made = RayUp(tmp_path, machines, "--nodes=1", "--secure")
    try:
        made.process.until_said("waiting for Ray to have room")
        assert not actors("NodeActor")
        machines.add()  # as an autoscaler does
        made.until_nodes(1)
        assert len(made.answer()) > TOKENS
        processes = [process for kind in ("HeadActor", "NodeActor") for actor in actors(kind) for process in [actor, *inside(actor)]]
        assert len(processes) >= 4
        made.process.popen.kill()
        gone(processes)
    finally:
        made.end()
