"""The keepers of leases, for the contract suite: each with real sockets, but for the one in memory."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from shoal.discovery import redis_url
from shoal.leadership import etcd_url
from shoal.leadership.clock import elapsed
from shoal.leadership.etcd import EtcdLease
from shoal.leadership.kubernetes import KubernetesLease
from shoal.leadership.lease import Lease
from shoal.leadership.ledger import WitnessLedger
from shoal.leadership.memory import MemoryKeeper, MemoryLease
from shoal.leadership.redis import RedisLease
from shoal.leadership.witness import WitnessLease
from shoal.leadership.witness_server import WitnessServer
from shoal.service_account import ServiceAccount
from tests.support.fake_etcd import FakeEtcd
from tests.support.fake_kubernetes import FakeKubernetes
from tests.support.redis_server import RedisServer

ROOT = Path(__file__).parents[2]
CLUSTER = "reef"


class Place:
    """A keeper of its own. duration: seconds, of leases that say nothing else."""

    duration = 1.0

    async def start(self) -> None:
        pass

    def lease(self, duration: float = 0.0, cluster: str = CLUSTER) -> Lease:
        raise NotImplementedError

    async def stop(self) -> None:
        """The keeper no longer answers."""
        raise NotImplementedError

    async def again(self) -> None:
        """It does, with what it had stored."""
        raise NotImplementedError

    async def close(self) -> None:
        pass


class MemoryPlace(Place):
    def __init__(self, folder: Path) -> None:
        self._keepers: dict[str, MemoryKeeper] = {}

    def lease(self, duration: float = 0.0, cluster: str = CLUSTER) -> Lease:
        keeper = self._keepers.setdefault(cluster, MemoryKeeper())
        return MemoryLease(keeper, duration or self.duration)

    async def stop(self) -> None:
        for keeper in self._keepers.values():
            keeper.reachable = False

    async def again(self) -> None:
        for keeper in self._keepers.values():
            keeper.reachable = True


class RedisPlace(Place):
    def __init__(self, folder: Path) -> None:
        self.server = RedisServer(folder)

    def lease(self, duration: float = 0.0, cluster: str = CLUSTER) -> Lease:
        return RedisLease(redis_url.parse(self.server.url), cluster, duration or self.duration)

    async def stop(self) -> None:
        self.server.stop()

    async def again(self) -> None:
        """It has nothing on disk."""
        await asyncio.to_thread(self.server.start)

    async def close(self) -> None:
        self.server.stop()


class WitnessPlace(Place):
    def __init__(self, folder: Path) -> None:
        self._path = folder / "leases.json"
        self._server: WitnessServer | None = None
        self.port = 0

    async def start(self) -> None:
        self._server = WitnessServer(WitnessLedger(self._path, elapsed))
        await self._server.start("127.0.0.1", self.port)
        self.port = self._server.port

    def lease(self, duration: float = 0.0, cluster: str = CLUSTER) -> Lease:
        return WitnessLease(f"127.0.0.1:{self.port}", cluster, duration or self.duration)

    async def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.stop()

    async def again(self) -> None:
        await self.start()

    async def close(self) -> None:
        await self.stop()


class FakeEtcdPlace(Place):
    def __init__(self, folder: Path) -> None:
        self.server = FakeEtcd()
        self.server.start()

    def lease(self, duration: float = 0.0, cluster: str = CLUSTER) -> Lease:
        return EtcdLease(etcd_url.parse(self.server.url), cluster, duration or self.duration)

    async def stop(self) -> None:
        await asyncio.to_thread(self.server.stop)

    async def again(self) -> None:
        self.server.start()

    async def close(self) -> None:
        await self.stop()


class EtcdPlace(Place):
    """etcd itself, one member."""

    def __init__(self, folder: Path) -> None:
        self._binary, self._folder = etcd_binary(), folder
        self._ports = [_free_port(), _free_port()]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"etcd://127.0.0.1:{self._ports[0]}"

    async def start(self) -> None:
        await asyncio.to_thread(self._start)

    def _start(self) -> None:
        client, peer = (f"http://127.0.0.1:{port}" for port in self._ports)
        options = {
            "data-dir": str(self._folder / "data"),
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"default={peer}",
        }
        with (self._folder / "etcd.log").open("ab") as log:
            command = [self._binary, *(f"--{name}={value}" for name, value in options.items())]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        for _ in range(3000):
            assert self._process.poll() is None, (self._folder / "etcd.log").read_text()[-2000:]
            try:
                if httpx.get(f"{client}/health", trust_env=False, timeout=5).json().get("health") == "true":
                    return
            except (httpx.HTTPError, ValueError):
                pass
            time.sleep(0.02)
        raise AssertionError("etcd does not start:\n" + (self._folder / "etcd.log").read_text()[-2000:])

    def lease(self, duration: float = 0.0, cluster: str = CLUSTER) -> Lease:
        return EtcdLease(etcd_url.parse(self.url), cluster, duration or self.duration)

    async def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            await asyncio.to_thread(process.wait)

    async def again(self) -> None:
        await self.start()

    async def close(self) -> None:
        await self.stop()


class KubernetesPlace(Place):
    def __init__(self, folder: Path) -> None:
        self.server = FakeKubernetes()
        self.server.start()
        self._account = folder
        for name, text in (("token", self.server.token), ("namespace", "default")):
            (folder / name).write_text(text)

    def lease(self, duration: float = 0.0, cluster: str = CLUSTER) -> Lease:
        return KubernetesLease(ServiceAccount(self.server.url, self._account), f"shoal-{cluster}", duration=duration or self.duration)

    async def stop(self) -> None:
        await asyncio.to_thread(self.server.stop)

    async def again(self) -> None:
        self.server.start()

    async def close(self) -> None:
        await self.stop()


def etcd_binary() -> str:
    """Its path; skips the test where there is none, unless SHOAL_REQUIRE_ETCD is set."""
    here = ROOT / "build" / "etcd" / "usr" / "bin" / "etcd"
    found = shutil.which("etcd") or (str(here) if here.exists() else None)
    if found is None and os.environ.get("SHOAL_REQUIRE_ETCD"):
        pytest.fail("etcd is missing: make etcd")
    if found is None:
        pytest.skip("etcd is not installed: make etcd")
    return found


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


PLACES: dict[str, Callable[[Path], Any]] = {
    "memory": MemoryPlace,
    "redis": RedisPlace,
    "witness": WitnessPlace,
    "fake etcd": FakeEtcdPlace,
    "etcd": EtcdPlace,
    "kubernetes": KubernetesPlace,
}
