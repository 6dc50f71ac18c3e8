"""A Ray cluster of several machines, each an address of the loopback with a raylet of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import psutil
import pytest


class RayMachines:
    """The first has no room for anything: it stands for the machine from which commands are given."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster: Any = Cluster()
        self.raylets: dict[str, Any] = {}
        """By address, without the first."""
        self._made = 2
        self._add("127.0.0.2", 0)

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def _add(self, address: str, cpus: int) -> Any:
        return self._cluster.add_node(
            node_ip_address=address,
            num_cpus=cpus,
            memory=2**30,
            object_store_memory=80 * 2**20,
            include_dashboard=False,
        )

    def add(self, cpus: int = 1) -> str:
        """Answers its address."""
        self._made += 1
        address = f"127.0.0.{self._made}"
        self.raylets[address] = self._add(address, cpus)
        return address

    def lose(self, address: str) -> None:
        """As if it had lost its power."""
        self._cluster.remove_node(self.raylets.pop(address), allow_graceful=False)

    def end(self) -> None:
        self._cluster.shutdown()


def actors(kind: str) -> list[psutil.Process]:
    """The workers of this machine that an actor of the kind lives in."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name().startswith(f"ray::{kind}") or process.cmdline()[:1] == [f"ray::{kind}"]:
                found.append(process)
    return found


@contextlib.contextmanager
def ray_machines(count: int) -> Iterator[RayMachines]:
    """So many machines with one processor each."""
    pytest.importorskip("ray", reason="pip install shoal[ray]")
    made = RayMachines()
    try:
        for _ in range(count):
            made.add()
        yield made
    finally:
        made.end()
