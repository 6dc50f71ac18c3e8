"""What a client of a cluster with several heads waits when a part of it is killed: see `benchmarks.recovery`."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median

import httpx2 as httpx

from benchmarks.report import processor
from tests.support.cluster import Cluster, until
from tests.support.heads import Heads
from tests.support.redis_server import RedisServer

_TOKENS = 2000
_WARM = 40  # events before something is killed
_SETTLE = 40  # events after it
_RESUME = "3"
SECONDS = "2"
"""Of the lease."""


class Reader(threading.Thread):
    """Reads one named stream, and comes back for it at whichever head answers. It notes when each event came."""

    def __init__(self, heads: list[Cluster], leader: Cluster, name: str) -> None:
        super().__init__(daemon=True)
        self._heads, self._leader, self._name = heads, leader, name
        self.times: list[float] = []
        self.stopped = threading.Event()
        self._last = ""

    def run(self) -> None:
        body = {"prompt": "Once upon a time", "max_tokens": _TOKENS, "temperature": 1, "seed": 5, "stream": True, "ignore_eos": True}
        self._read(self._leader, "POST", "/v1/completions", json=body, headers={"X-Request-Id": self._name})
        turn = 0
        while not self.stopped.is_set():
            turn += 1
            self._read(self._heads[turn % len(self._heads)], "GET", f"/v1/streams/{self._name}", headers={"Last-Event-ID": self._last})
            time.sleep(0.01)

    def _read(self, head: Cluster, method: str, path: str, **what: object) -> None:
        with (
            contextlib.suppress(httpx.TransportError),
            httpx.Client(base_url=head.url, timeout=httpx.Timeout(2, read=60)) as client,
            client.stream(method, path, **what) as answer,  # pyright: ignore[reportArgumentType]
        ):
            for line in answer.iter_lines() if answer.status_code == 200 else ():
                if self.stopped.is_set():
                    return
                if line.startswith("id: "):
                    self._last = line[4:]
                    self.times.append(time.monotonic())

    def pause(self, since: float) -> float:
        """Seconds of the longest wait for an event after that moment."""
        times = [since, *(at for at in self.times if at > since)]
        return max(b - a for a, b in pairwise(times))


@contextlib.contextmanager
def _cluster(nodes: int, *flags: str) -> Iterator[tuple[Heads, RedisServer]]:
    with tempfile.TemporaryDirectory() as folder:
        redis = RedisServer(Path(folder))
        made = Heads(Path(folder), redis.url, "--resume", _RESUME, *flags, seconds=SECONDS)
        try:
            made.serve("a")
            for i in range(nodes):
                made.head("a").join("--name", f"n{i}")
            made.head("a").until_ready()
            made.stand_by("b", "a")
            made.until_copied("b")
            yield made, redis
        finally:
            made.end()
            redis.stop()


def _measured(made: Heads, leader: str, name: str, strike: Callable[[], None]) -> float:
    """Seconds that a stream waited when something was struck."""
    heads = [made.head(other) for other in ("a", "b")]
    reader = Reader(heads, made.head(leader), name)
    reader.start()
    until(lambda: len(reader.times) >= _WARM, made.story)
    at = time.monotonic()
    strike()
    time.sleep(0.2)
    before = len(reader.times)
    until(lambda: len(reader.times) >= before + _SETTLE and time.monotonic() > at + 5, made.story)
    reader.stopped.set()
    reader.join(5)
    time.sleep(float(_RESUME) + 1)  # until the stream that nobody comes back for has ended
    return reader.pause(at)


def _first_stage(made: Heads, leader: str) -> int:
    """Index of a node that has layers."""
    layers = made.head(leader).layers()
    name = next(name for name, (first, end) in sorted(layers.items()) if end > first)
    return next(i for i, node in enumerate(made.head("a").nodes) if node.popen.poll() is None and name in node.arguments)


def _round(made: Heads, redis: RedisServer, leader: str, number: int, out: dict[str, list[float]]) -> str:
    """Kills one part after another, and starts it again. Returns which head leads then."""
    other = "b" if leader == "a" else "a"

    def struck(what: str, strike: Callable[[], None]) -> None:
        out.setdefault(what, []).append(_measured(made, leader, f"{what.split()[-1]}-{number}", strike))

    struck("a node: a spare takes its layers", lambda: made.head("a").nodes[_first_stage(made, leader)].popen.kill())
    made.head("a").nodes[:] = made.head("a").living
    made.head("a").join_from((), made.address(leader), "--name", f"again-{number}")
    until(lambda: len(made.head(leader).layers()) == 3, made.story)
    time.sleep(3)  # layers may be moved to it
    struck("the standby head", lambda: made.kill(other))
    made.stand_by(other, leader)
    made.until_copied(other)

    def keeper() -> None:
        redis.stop()
        time.sleep(float(SECONDS))
        redis.start()

    struck("the lease's keeper, for longer than the lease", keeper)
    return made.until_leads("a", "b")


def _succession(made: Heads, leader: str, number: int, out: dict[str, list[float]]) -> str:
    """Kills the head that leads. Returns which one leads then."""
    other = "b" if leader == "a" else "a"
    until(lambda: f"{made.address(leader)}, with a copy" in made.head(other).head.said.rpartition("leads no more")[2], made.story)
    out.setdefault("the head that leads", []).append(_measured(made, leader, f"head-{number}", lambda: made.kill(leader)))
    made.until_leads(other)
    made.stand_by(leader, other)
    made.until_copied(leader)
    return other


def _copy(made: Heads, number: int) -> float:
    """Seconds that a stream waits when the node of its copy, or of the other one, is killed."""
    seconds = _measured(made, "a", f"copy-{number}", lambda: made.head("a").nodes[0].popen.kill())
    made.head("a").nodes[:] = made.head("a").living
    made.head("a").join("--name", f"again-{number}")
    until(lambda: len(made.head("a").layers()) == 2, made.story)
    made.head("a").until_ready()
    return seconds


def measure(rounds: int) -> dict[str, list[float]]:
    """Seconds by what was killed."""
    out: dict[str, list[float]] = {}
    with _cluster(3, "--min-nodes", "2", "--spread", "--spares", "1") as (made, redis):
        leader = "a"
        for number in range(rounds):
            leader = _succession(made, _round(made, redis, leader, number, out), number, out)
    with _cluster(2, "--min-nodes", "2", "--replicas", "2") as (made, _):
        out["a node of one of two copies"] = [_copy(made, number) for number in range(rounds)]
    return out


def table(rounds: int) -> None:
    print(f"### A client's wait when a part is killed; {processor()}; lease of {SECONDS} s; s, medians of {rounds}\n")
    print("| killed | longest wait for a token | shortest and longest of the rounds |\n|---|---|---|")
    for what, seconds in measure(rounds).items():
        print(f"| {what} | {median(seconds):.2f} | {min(seconds):.2f} to {max(seconds):.2f} |", flush=True)
    print("\ngoal: the head that leads: <= 3 s")
