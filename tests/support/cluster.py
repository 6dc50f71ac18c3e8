"""`python -m shoal` as real processes on free ports of the loopback, each with a log, always ended."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil

from shoal.control.client import describe
from shoal.control.messages import NodePart

MODEL = "smollm2-135m"
BOUND = 60.0
"""Seconds after which something that should happen counts as not happening; no test waits that long when all is well."""


_FIRST, _PORTS = 12000, 2000  # below those that systems give to outgoing connections; so many for each of the processes that run tests
_ports = itertools.cycle(range(0, _PORTS, 3))  # a head's pairing port is the one after its own


def free_port() -> int:
    """One that nobody listens at, and that no other test is given for a long while."""
    worker = int("0" + os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw"))
    for offset in _ports:
        port = _FIRST + worker % 8 * _PORTS + (offset + os.getpid()) % _PORTS
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError("no port is free")


def until(what: Callable[[], Any], why: Callable[[], str] = lambda: "", bound: float = BOUND, every: float = 0.02) -> Any:
    """Polls until something is true and answers it; fails with what `why` says. every: seconds between polls; some cost as much as a token."""
    end = time.monotonic() + bound
    while not (value := what()):
        assert time.monotonic() < end, f"nothing came within {bound:g} s: {why()}"
        time.sleep(every)
    return value


def apart(environment: Mapping[str, str], state: Path) -> dict[str, str]:
    """Where a command keeps keys, history and requests: `state`, unless its environment names a place for them."""
    return {"SHOAL_HOME": "" if {"HOME", "SHOAL_CACHE"} & environment.keys() else str(state)}


class Process:
    """One `shoal` command, in a process group of its own."""

    def __init__(self, log: Path, *arguments: str, before: Sequence[str] = (), **environment: str) -> None:
        """before: a command that runs it."""
        self.arguments, self._log = arguments, log
        with log.open("wb") as out:
            self.popen = subprocess.Popen(
                [*before, sys.executable, "-m", "shoal", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "COLUMNS": "200", **apart(environment, log.parent / "state"), **environment},
            )

    @property
    def said(self) -> str:
        return self._log.read_text(errors="replace")

    def describe(self) -> str:
        return f"shoal {' '.join(self.arguments)} (status {self.popen.poll()}) said:\n{self.said}"

    def until_said(self, text: str) -> None:
        until(lambda: text in self.said or self.popen.poll() is not None, self.describe)
        assert text in self.said, self.describe()

    def family(self) -> list[psutil.Process]:
        """This process and those that it started, as far as they live."""
        with contextlib.suppress(psutil.NoSuchProcess):
            own = psutil.Process(self.popen.pid)
            return [own, *own.children(recursive=True)]
        return []

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def wait(self) -> int:
        """The exit status."""
        until(lambda: self.popen.poll() is not None, self.describe)
        return int(self.popen.returncode)

    def end(self) -> None:
        """Asks, then makes it and its children go."""
        family = self.family()
        with contextlib.suppress(ProcessLookupError):
            self.popen.terminate()
        _, left = psutil.wait_procs(family, 15)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.popen.wait()


def gone(family: list[psutil.Process]) -> None:
    """Fails where one of the processes goes on living."""
    until(lambda: not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE], lambda: str(family))


class Cluster:
    """A head and its nodes; `http` talks to the API."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[Process] = []
        self.nodes: list[Process] = []
        self._head: Process | None = None
        self.port, self.control_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, timeout=BOUND, trust_env=False)

    @property
    def head(self) -> Process:
        """The one that was started last, or that a test said."""
        return self._head or next(process for process in reversed(self._processes) if {"serve", "up"} & set(process.arguments))

    @property
    def has_head(self) -> bool:
        return any({"serve", "up"} & set(process.arguments) for process in self._processes)

    @property
    def living(self) -> list[Process]:
        """The nodes that have not ended, oldest first."""
        return [node for node in self.nodes if node.popen.poll() is None]

    def replace_head(self, process: Process) -> None:
        self._head = process

    def start(self, *arguments: str, before: Sequence[str] = (), **environment: str) -> Process:
        process = Process(self._folder / f"{len(self._processes)}-{arguments[0]}.log", *arguments, before=before, **environment)
        self._processes.append(process)
        return process

    def serve(self, *flags: str) -> Process:
        return self.start("serve", "--port", str(self.port), "--control-port", str(self.control_port), "--discovery", "none", *flags)

    def up(self, *flags: str, **environment: str) -> Process:
        ports = ("--port", str(self.port), "--control-port", str(self.control_port))
        return self.start("up", *ports, "--threads", "1", *flags, **environment)

    def join(self, *flags: str, **environment: str) -> Process:
        return self.join_from((), f"127.0.0.1:{self.control_port}", *flags, **environment)

    def join_from(self, before: Sequence[str], address: str, *flags: str, **environment: str) -> Process:
        """before: what runs the command, on another machine."""
        common = ("--threads", "1", "--memory", "1GiB", "--runtime", "native")
        node = self.start("join", address, *common, *flags, before=before, **environment)
        self.nodes.append(node)
        return node

    def story(self) -> str:
        return "\n\n".join(process.describe() for process in self._processes)

    def answers(self, path: str) -> bool:
        """Whether a GET answers 200 now."""
        assert self.head.popen.poll() is None, self.head.describe()
        try:
            return self.http.get(path).status_code == 200
        except httpx.TransportError:
            return False

    def until_ready(self) -> None:
        until(lambda: self.answers("/health/ready"), self.story)

    def until_lost(self) -> None:
        until(lambda: not self.answers("/health/ready"), self.story)

    def metrics(self, *names: str) -> list[float]:
        """As they are at one moment, of all models and copies: those that have no other label."""
        plain: dict[str, float] = {}
        for line in self.http.get("/metrics").text.splitlines():
            if found := re.fullmatch(r'(shoal_\w+)(?:\{model="[^"]*"(?:,replica="\d+")?\})? (\S+)', line):
                plain[found[1]] = plain.get(found[1], 0.0) + float(found[2])
        return [plain[f"shoal_{name}"] for name in names]

    def metric(self, name: str) -> float:
        return self.metrics(name)[0]

    def total(self, name: str, **labels: str) -> float:
        """Of all series of a metric that have these labels; there must be one."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        lines = [line for line in self.http.get("/metrics").text.splitlines() if re.match(rf"shoal_{name}[ {{]", line)]
        found = [float(line.rsplit(maxsplit=1)[1]) for line in lines if all(label in line for label in wanted)]
        assert found, f"there is no {name} with {wanted}"
        return sum(found)

    def until_idle(self) -> None:
        """Fails where a sequence or a KV block stays in use."""
        gauges = ("sequences_running", "sequences_waiting", "kv_blocks_used")
        until(lambda: not any(self.metrics(*gauges)), lambda: str(dict(zip(gauges, self.metrics(*gauges), strict=True))))

    def complete(self, prompt: Any, tokens: int = 8, **options: Any) -> httpx.Response:
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, **options}
        return self.http.post("/v1/completions", json=body)

    def layers(self) -> dict[str, tuple[int, int]]:
        """Of each node, by its name: the first, and the one after its last; twice 0 where it has none."""
        found = asyncio.run(describe(f"127.0.0.1:{self.control_port}"))
        return {node.name: (part.first_layer, part.end_layer) for node in found.nodes for part in [*node.parts, NodePart()][:1]}

    def until_spread(self, nodes: int) -> None:
        """Every one of so many nodes has layers, and they serve."""
        until(lambda: [end > first for first, end in self.layers().values()] == [True] * nodes, self.story, every=0.1)
        self.until_ready()

    def texts(self, prompt: Any, tokens: int = 8, **options: Any) -> list[str]:
        answer = self.complete(prompt, tokens, **options)
        assert answer.status_code == 200, answer.text
        return [choice["text"] for choice in answer.json()["choices"]]

    def tensor_ports(self) -> list[int]:
        """Of the nodes' processes: what they listen on."""
        own = [psutil.Process(node.popen.pid).net_connections("tcp") for node in self.living]
        return [c.laddr.port for connections in own for c in connections if c.status == psutil.CONN_LISTEN]

    def end(self) -> None:
        self.http.close()
        for process in reversed(self._processes):
            process.end()


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Ends every process, whatever happens inside."""
    made = Cluster(folder)
    try:
        yield made
    finally:
        made.end()


@contextlib.contextmanager
def served(folder: Path, nodes: int, *flags: str) -> Iterator[Cluster]:
    """A head with so many nodes, each of which holds some layers, ready."""
    with cluster(folder) as made:
        made.serve("--min-nodes", str(nodes), "--spread", *flags)
        for i in range(nodes):
            made.join("--name", f"n{i}")
        made.until_ready()
        yield made
