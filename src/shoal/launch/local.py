"""A whole cluster on this machine: the head in this process, each node in its own."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Sequence
from typing import IO

from shoal.address import join_host_port
from shoal.allowance import usable_memory
from shoal.config import HeadSettings, NodeRole, NodeSettings, default_threads
from shoal.discovery.addresses import reached_at
from shoal.errors import ClusterError
from shoal.executor.runtimes import check_model
from shoal.launch.environment import child_environment
from shoal.launch.keys import certify, head_credentials
from shoal.node.head import Head
from shoal.node.host_environment import HostEnvironment
from shoal.node.model_engine import ModelOffer

_GRACE = 5.0


def shares(settings: NodeSettings, nodes: int) -> NodeSettings:
    """The limits of each of several nodes on one machine, where the settings give none."""
    memory = settings.memory or f"{usable_memory() // nodes}"
    threads = settings.threads or max(1, default_threads() // nodes)
    return dataclasses.replace(settings, memory=memory, threads=threads, patience=0.0)


class _Child:
    def __init__(self, name: str, settings: NodeSettings, address: str) -> None:
        self.name = name
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        command = [sys.executable, "-m", "shoal", "--log-format", "text", "join", address, "--name", name]
        for field in dataclasses.fields(settings):
            value = getattr(settings, field.name)
            if field.name != "name" and value != field.default:
                flag = field.name.replace("_", "-")
                command += [f"--{flag}", str(value)] if not isinstance(value, bool) else [f"--{flag}" if value else f"--no-{flag}"]
        # A separate session: Ctrl-C reaches only the head, which sends the nodes home in good order. If the head dies
        # without a message, a node sees its connection end and leaves too.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # the same on Windows
            env=child_environment(),
        )

    def log(self) -> str:
        """The last lines that it wrote."""
        self._log.seek(0)
        return "\n".join(self._log.read().decode(errors="replace").splitlines()[-8:])

    def ending(self) -> str:
        """How it ended, with its last lines if it failed; '' while it runs."""
        if (status := self.process.poll()) is None:
            return ""
        if status == 0:
            return f"{self.name} has left"
        how = f"was killed ({signal.Signals(-status).name})" if status < 0 else f"ended with status {status}"
        return f"{self.name} {how}:\n{self.log()}".rstrip(":\n")

    async def end(self, joined: bool) -> None:
        """Waits for it to leave by itself, if it has joined; then forces it."""
        for action in (*((None,) if joined else ()), self.process.terminate, self.process.kill):
            if action is not None:
                action()
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self.process.wait, _GRACE)
                break
        self._log.close()


class LocalCluster:
    def __init__(self, head: Head, children: list[_Child]) -> None:
        self.head = head
        self.children = children
        self._ended: set[str] = set()

    async def until_ready(self) -> None:
        """Waits until the model is served. Raises ClusterError, with the node's last lines if one died."""
        ready = asyncio.ensure_future(self.head.until_ready())
        try:
            while not ready.done():
                for ending in self.endings():
                    raise ClusterError(ending)
                await asyncio.wait({ready}, timeout=0.05)
            ready.result()
        finally:
            ready.cancel()
            await asyncio.gather(ready, return_exceptions=True)

    def endings(self) -> list[str]:
        """How nodes ended, each reported once."""
        found = {child.name: ending for child in self.children if child.name not in self._ended and (ending := child.ending())}
        self._ended |= found.keys()
        return [*found.values()]


@contextlib.asynccontextmanager
async def local_cluster(
    settings: HeadSettings, node: NodeSettings, offers: Sequence[ModelOffer], nodes: int, workers: int = 0
) -> AsyncGenerator[LocalCluster]:
    """Starts the processes; ends all of them, whatever happens inside. workers: so many of the nodes hold experts alone. Raises
    UnsupportedModel, ConfigError if the nodes' runtime cannot run the model."""
    for offer in offers:
        check_model(node.runtime, offer.model.spec, offer.model.name)
    head = Head(dataclasses.replace(settings, min_nodes=nodes, spread=True), offers, HostEnvironment(head_credentials(settings)))
    await head.start()
    address = join_host_port(reached_at(settings.host), head.control_port)
    children: list[_Child] = []
    try:
        if settings.protected:
            certify(address)
        for i in range(nodes):
            role = NodeRole.EXPERTS if i >= nodes - workers else node.role
            children.append(_Child(f"node-{i + 1}", dataclasses.replace(shares(node, nodes), role=role), address))
        yield LocalCluster(head, children)
    finally:
        joined = head.members
        await head.stop()
        await asyncio.gather(*(child.end(child.name in joined) for child in children))
