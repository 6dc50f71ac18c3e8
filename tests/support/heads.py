"""A cluster with several heads, of which one leads, as real processes."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

from shoal.node.led_mark import led
from tests.support.cluster import Cluster, Process, until
from tests.support.redis_server import RedisServer

FLAGS = ("--min-nodes", "2", "--spread", "--slots", "8", "--context", "512")
SECONDS = "4"
"""Of the lease: enough for a head on a machine that is busy with other tests."""


class Heads:
    """`a` leads first; `b` and others stand by. The nodes are those of `a`."""

    def __init__(self, folder: Path, lease: str, *flags: str, seconds: str = SECONDS) -> None:
        """flags: of every head. seconds: of the lease."""
        self._folder, self.lease = folder, lease
        self.flags: tuple[str, ...] = ("--lease", lease, "--lease-seconds", seconds, *flags)
        self.all: dict[str, Cluster] = {}

    def head(self, name: str) -> Cluster:
        if name not in self.all:
            folder = self._folder / name
            folder.mkdir()
            self.all[name] = Cluster(folder)
        return self.all[name]

    def serve(self, name: str, *flags: str) -> Process:
        made, folder = self.head(name), self._folder / name
        process = made.serve("--state", str(folder / "kept"), "--data", str(folder / "data"), *self.flags, *flags)
        made.replace_head(process)
        return process

    def stand_by(self, name: str, leader: str) -> Process:
        return self.serve(name, "--standby", self.address(leader))

    def address(self, name: str) -> str:
        return f"127.0.0.1:{self.head(name).control_port}"

    def led(self, name: str) -> int | None:
        """See node.led_mark."""
        return led(self._folder / name / "kept")

    def until_copied(self, name: str) -> None:
        """A standby has all that a successor needs."""
        self.head(name).head.until_said("with a copy of all that it keeps")

    def until_leads(self, *names: str) -> str:
        """One of these heads leads and serves; returns which."""
        return until(lambda: next((name for name in names if self.leads(name)), ""), self.story)

    def leads(self, name: str) -> bool:
        made = self.head(name)
        with contextlib.suppress(Exception):
            return made.head.popen.poll() is None and made.http.get("/health/ready", timeout=2).status_code == 200
        return False

    def kill(self, name: str) -> None:
        self.head(name).head.signal(signal.SIGKILL)
        self.head(name).head.wait()

    def story(self) -> str:
        return "\n\n".join(f"== {name}\n{made.story()}" for name, made in self.all.items())

    def end(self) -> None:
        for made in self.all.values():
            for process in made.nodes:
                process.end()
        for made in self.all.values():
            if made.has_head:
                with contextlib.suppress(ProcessLookupError):
                    made.head.signal(signal.SIGCONT)
            made.end()


@contextlib.contextmanager
def heads(folder: Path, *flags: str, standbys: int = 1) -> Iterator[tuple[Heads, RedisServer]]:
    """Two nodes, a head that leads, and those that stand by for it, all ready."""
    folder.mkdir(exist_ok=True)
    redis = RedisServer(folder)
    made = Heads(folder, redis.url, *(flags or FLAGS))
    try:
        made.serve("a")
        for name in ("n0", "n1"):
            made.head("a").join("--name", name)
        made.head("a").until_ready()
        for name in ["b", "c", "d"][:standbys]:
            made.stand_by(name, "a")
        for name in ["b", "c", "d"][:standbys]:
            made.until_copied(name)
        yield made, redis
    finally:
        made.end()
        redis.stop()
