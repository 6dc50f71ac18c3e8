"""Several processes that serve the API on one socket, kept alive for as long as the head serves."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from shoal.address import http_url
from shoal.beside import beside
from shoal.config import ApiSettings
from shoal.discovery.addresses import reached_at
from shoal.gateway.engines import Engines
from shoal.gateway.operator import Operator
from shoal.gateway.workers.home import HeadHome
from shoal.gateway.workers.server import EngineServer
from shoal.launch.gateway_door import GatewayDoor
from shoal.launch.local import child_environment
from shoal.launch.tokenizers import cut
from shoal.retry import Backoff
from shoal.text.tokenizer_parts import TokenizerFiles

log = structlog.get_logger()

_LOOK = 0.1  # seconds between checks whether a process lives
_LONGEST = 80  # bytes of a folder's name: a Unix socket's may have 103 to 107, with the folder for this head and its own
_GRACE = 8.0  # seconds that a worker has to end: slightly more than its own streams have
_SETTLED = 30.0  # seconds after which a worker that ends counts as having been healthy


class GatewayPort(NamedTuple):
    """See GatewayDoor."""

    host: str
    port: int
    context: ssl.SSLContext | None


class ApiWorkers:
    def __init__(
        self,
        engines: Engines,
        files: Callable[[str], TokenizerFiles],
        settings: ApiSettings,
        address: socket.socket,
        log_format: str,
        verbose: bool,
        operator: Operator | None = None,
        gateways: GatewayPort | None = None,
    ) -> None:
        """files, operator: see EngineServer. log_format: text or json. verbose: as the flag. address: from `listening`. All workers
        accept from it, so that one that ends takes no waiting clients with it. gateways: where they are taken, if they are; raises
        ConfigError if the API's keys cannot be read for them."""
        self._socket, self._count = address, max(settings.api_workers, 1)
        self._logging = {"SHOAL_LOG_FORMAT": log_format, "SHOAL_VERBOSE": "1" if verbose else "0"}
        url = http_url(reached_at(settings.api_host), self.port) + (", on its own machine alone" if not settings.exposed else "")
        self._home = None if gateways is None else HeadHome(settings, lambda name: cut(files(name)), url)
        self._engine = EngineServer(engines, files, _of_one(settings, self._count), self._lost, operator, self._home)
        self._door = None if gateways is None else GatewayDoor(self._engine, *gateways)
        self._gone: dict[int, asyncio.Event] = {}  # by process: set when its conversation with the engine ended
        self._stopping = asyncio.Event()
        self._rng = random.Random()

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    async def serve(self) -> None:
        """Runs until stop() is called. Raises ConfigError if the port for gateways cannot be used."""
        with tempfile.TemporaryDirectory(prefix="shoal-", dir=_folder_for_sockets(tempfile.gettempdir())) as folder:
            async with AsyncExitStack() as stack:
                if self._home is not None:  # ends last: gateways tell what keys were used for until they are gone
                    await stack.enter_async_context(beside(self._home.keyring.keep()))
                path = Path(folder) / "engine"
                await self._engine.start(path)
                stack.push_async_callback(self._engine.close)
                if self._door is not None:
                    await self._door.start()
                    stack.push_async_callback(self._door.close)
                await self._keep_all(path)

    async def _keep_all(self, path: Path) -> None:
        keepers = [asyncio.create_task(self._keep(path)) for _ in range(self._count)]
        try:
            await asyncio.gather(*keepers)
        finally:
            for task in keepers:
                task.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)

    async def finish(self) -> None:
        await self._engine.finish()

    @property
    def inside(self) -> int:
        return self._engine.inside

    def stop(self) -> None:
        self._stopping.set()

    async def _keep(self, path: Path) -> None:
        """Keeps one worker alive, starting it again until stop() is called."""
        now, backoff = asyncio.get_running_loop().time, Backoff(0.2, 10.0)
        while not self._stopping.is_set():
            began, process = now(), self._start(path)
            gone = self._gone[process.pid] = asyncio.Event()
            try:
                await self._stopped_or(_useless(process, gone))
                process.terminate()
                async with asyncio.timeout(_GRACE):
                    await _ended(process)
            except TimeoutError:
                log.warning("an API worker does not end when it is asked to, and is killed", pid=process.pid)
            finally:
                process.kill()
                status = process.wait()
                del self._gone[process.pid]
            if self._stopping.is_set():
                return
            backoff.tries = 0 if now() - began > _SETTLED else backoff.tries
            delay = backoff.next(self._rng)
            log.warning("an API worker ended, and another one is started", status=status, seconds=round(delay, 2))
            await self._stopped_or(asyncio.sleep(delay))

    def _start(self, path: Path) -> subprocess.Popen[bytes]:
        # A separate session: Ctrl-C reaches only the head, which ends the workers in good order. If the head dies without a message,
        # a worker sees its connection end and ends too.
        listener = self._socket.fileno()
        command = [sys.executable, "-m", "shoal.cli.api_worker", str(path), str(listener)]
        environment = {**child_environment(), **self._logging}
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=(listener,), env=environment)

    async def _stopped_or(self, work: Coroutine[Any, Any, None]) -> None:
        """Waits for the work, or for stop()."""
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(work), asyncio.create_task(self._stopping.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _lost(self, pid: int) -> None:
        """A worker's conversation ended: because it exited, or because it did not read."""
        if (gone := self._gone.get(pid)) is not None:
            gone.set()


def _folder_for_sockets(usual: str) -> str:
    """usual: where temporary files are; not good if it is so long that the name of a Unix socket there would be too long."""
    return usual if len(os.fsencode(usual)) <= _LONGEST else "/tmp"


def _of_one(settings: ApiSettings, count: int) -> ApiSettings:
    """The settings of each of so many workers."""
    return dataclasses.replace(settings, connections=-(-settings.connections // count))


async def _useless(process: subprocess.Popen[bytes], gone: asyncio.Event) -> None:
    while process.poll() is None and not gone.is_set():  # noqa: ASYNC110 - a process sets no event
        await asyncio.sleep(_LOOK)


async def _ended(process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:  # noqa: ASYNC110
        await asyncio.sleep(_LOOK)
