"""Machines on this machine: each a network namespace with one cable, and proxies at its plug that can cut single connections."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess

from tests.support.cluster import Cluster, Process
from tests.support.proxy import Proxy

TENSORS = 7500
_numbers = itertools.count()


def possible() -> bool:
    """Whether this process may make namespaces."""
    return os.geteuid() == 0 and _ip() is not None


def _ip() -> str | None:
    return shutil.which("ip", path="/usr/sbin:/sbin:/usr/bin:/bin")


def ip(*arguments: str) -> None:
    subprocess.run([_ip() or "ip", *arguments], check=True, capture_output=True)


class Machine:
    """A node in a namespace. The head, and other nodes, know it by this end of its cable, where the proxies are."""

    def __init__(self, made: Cluster, name: str) -> None:
        number = next(_numbers)
        self.name = name
        self._namespace, self._cable = f"shoal{os.getpid()}-{number}", f"sh{os.getpid() % 100000}-{number}"
        net = f"10.{64 + os.getpid() % 64}.{number % 250}"  # of this run of the tests alone
        here, there = f"{net}.1", f"{net}.2"
        self._proxies: list[Proxy] = []
        self.node: Process | None = None
        self.lost = 0
        """How often the head has lost it."""
        try:
            ip("netns", "add", self._namespace)
            ip("link", "add", self._cable, "type", "veth", "peer", "name", "eth0", "netns", self._namespace)
            ip("addr", "add", f"{here}/30", "dev", self._cable)
            ip("link", "set", self._cable, "up")
            ip("-n", self._namespace, "addr", "add", f"{there}/30", "dev", "eth0")
            for device in ("eth0", "lo"):
                ip("-n", self._namespace, "link", "set", device, "up")
            ip("-n", self._namespace, "route", "add", "default", "via", here)
            self._tensors = Proxy(here, TENSORS, (there, TENSORS))
            self._proxies.append(self._tensors)
            self._control = Proxy(here, 0, ("127.0.0.1", made.control_port))
            self._proxies.append(self._control)
            self.node = made.join_from(
                [_ip() or "ip", "netns", "exec", self._namespace],
                f"{here}:{self._control.port}",
                "--name", name, "--bind", "0.0.0.0", "--tensor-port", str(TENSORS),
            )  # fmt: skip
        except BaseException:
            self.end()
            raise

    def unplug(self) -> None:
        ip("link", "set", self._cable, "down")

    def plug(self) -> None:
        ip("link", "set", self._cable, "up")

    def cut_tensors(self) -> None:
        """Resets the link from the stage before it."""
        assert self._tensors.cut(), f"{self.name} has no link"

    def cut_control(self) -> None:
        """Resets its conversation with the head."""
        assert self._control.cut(), f"{self.name} has no conversation"

    def end(self) -> None:
        if self.node is not None:
            self.node.end()
        for proxy in self._proxies:
            proxy.close()
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("link", "del", self._cable)
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("netns", "del", self._namespace)
