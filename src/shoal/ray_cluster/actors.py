"""What runs on Ray's machines: actors that hold a process of shoal each. Ray makes a killed one again, and it starts its process again."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import subprocess
import sys
import threading
from collections import deque

from shoal.address import join_host_port
from shoal.config import HeadSettings, NodeSettings
from shoal.control.client import refused
from shoal.errors import ShoalError
from shoal.launch.command_line import flags_of
from shoal.launch.environment import child_environment
from shoal.launch.keys import authority, kept_path
from shoal.ray_cluster.api import ray, util
from shoal.security.certificates import Role
from shoal.security.credentials import Credentials

_LAST_LINES = 8
_GRACE = 5.0


class _ProcessActor:
    """Lives in a worker of Ray, which shows what is printed to whoever runs `shoal ray up`."""

    def __init__(self, words: list[str]) -> None:
        self._words = words
        self._process: subprocess.Popen[str] | None = None
        self._lines = deque[str](maxlen=_LAST_LINES)
        self._reading: threading.Thread | None = None

    def start(self) -> None:
        """Once more, if it has ended."""
        if self._process is not None and self._process.poll() is None:
            return
        self._lines.clear()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "shoal.ray_cluster.tether", "--log-format", "text", *self._words],
            stdin=subprocess.PIPE,  # ends when this worker does, however that ends
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            env=child_environment() | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        )
        self._reading = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reading.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for text in process.stdout:
            self._lines.append(text.rstrip())
            print(text, end="", flush=True)

    def ending(self) -> str:
        """How the process ended, with its last lines; '' while it runs."""
        if self._process is None or (status := self._process.poll()) is None:
            return ""
        if self._reading is not None:
            self._reading.join(_GRACE)
        how = f"was killed ({signal.Signals(-status).name})" if status < 0 else f"ended with status {status}"
        return "\n".join((how, *self._lines))

    def stop(self) -> None:
        """Tells the process to end in good order."""
        if self._process is not None:
            self._process.terminate()


class HeadActor(_ProcessActor):
    def __init__(self, settings: HeadSettings) -> None:
        """settings: all but the host, which is that of the machine where Ray puts it."""
        self._settings = dataclasses.replace(settings, host=util.get_node_ip_address())
        super().__init__(["serve", *flags_of(self._settings)])
        if ray.get_runtime_context().was_current_actor_reconstructed:
            self._make_do()
        self.start()
        self._make_do()

    def _make_do(self) -> None:
        """Later heads serve with the nodes that are left."""
        self._words = ["serve", *flags_of(dataclasses.replace(self._settings, min_nodes=1))]

    def host(self) -> str:
        """The address of the machine that it runs on; another one if Ray has moved it."""
        return self._settings.host

    def joining(self) -> tuple[str, Credentials | None] | None:
        """HOST:PORT where nodes join, with what lets them in instead of a pairing code, if that is needed; None before it listens."""
        address = join_host_port(self._settings.host, self._settings.control_port)
        if asyncio.run(refused(address)) is not None:
            return None
        return address, authority().credentials(Role.NODE, "ray") if self._settings.protected else None


class NodeActor(_ProcessActor):
    def __init__(self, settings: NodeSettings, address: str, credentials: Credentials | None) -> None:
        super().__init__(["join", address, *flags_of(settings)])
        self._failure = ""
        try:
            if credentials is not None:
                credentials.save(kept_path(address))
        except ShoalError as error:
            self._failure = f"cannot start: {error}"
        else:
            self.start()

    def ending(self) -> str:
        return self._failure or super().ending()


class ScaleOrders:
    """Where `shoal ray scale` leaves the number of nodes that it asks for."""

    def __init__(self) -> None:
        self._order: tuple[int, bool] | None = None

    def post(self, nodes: int, at_least: bool = False) -> None:
        """at_least: it may not make them fewer, nor replace an order that has not been taken."""
        if at_least and self._order is not None:
            before, at_least = self._order
            nodes = max(nodes, before) if before else before
        self._order = nodes, at_least

    def take(self) -> tuple[int, bool] | None:
        """The last order, once."""
        order, self._order = self._order, None
        return order
