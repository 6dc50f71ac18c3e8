"""The machine that a process runs on: sockets, gRPC, threads, the clock."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from random import Random
from time import perf_counter
from typing import TypeVar

import structlog

from shoal.address import in_zone, of_socket, parse_address, zone_of
from shoal.control.client import ControlClient
from shoal.control.server import Attendant, ControlServer
from shoal.errors import ConfigError
from shoal.node.environment import ControlDoor
from shoal.security.certificates import Role, role_of, server_name
from shoal.security.credentials import Credentials
from shoal.transport.base import FrameStream, Handler
from shoal.transport.tcp import TcpListener, TcpStream, connect, listen

log = structlog.get_logger()

T = TypeVar("T")
_TURNS = 400  # one or two milliseconds
_QUICK = 0.02  # seconds by which heartbeats and the like may be delayed


class HostEnvironment:
    def __init__(self, credentials: Credentials | None = None) -> None:
        """With credentials, all traffic to and from other machines uses mutual TLS. Raises ConfigError if they have expired."""
        if credentials is not None:
            credentials.check(datetime.now(UTC))
        self.credentials = credentials
        self._server = credentials.server_context() if credentials is not None else None
        self._client = credentials.client_context() if credentials is not None else None
        self.rng, self.turns = Random(), _TURNS
        self._zone = ""  # IPv6 zone of the link to the head, if its address is link-local
        self._quick = 0  # size of a step that took no longer than a change of threads is worth
        self._steps = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._loads = ThreadPoolExecutor(1, thread_name_prefix="load")

    def now(self) -> float:
        return perf_counter()

    async def listen(self, host: str, port: int, handler: Handler) -> TcpListener:
        """With credentials, only heads and nodes get in."""
        if self._server is None:
            return await listen(host, port, handler)

        async def admit(stream: FrameStream) -> None:
            assert isinstance(stream, TcpStream)
            if role_of(stream.peer_names) in (Role.HEAD, Role.NODE):
                await handler(stream)
            else:
                log.warning("a peer whose certificate is neither a head's nor a node's was turned away", peer=stream.peer)

        return await listen(host, port, admit, self._server)

    async def connect(self, host: str, port: int, timeout: float, role: Role = Role.NODE) -> FrameStream:
        return await connect(
            in_zone(host, self._zone), port, timeout, self._client, server_name(role) if self._client is not None else None
        )

    def facing(self, host: str, port: int) -> str:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(address)
                return of_socket(probe.getsockname())
        except OSError as error:
            raise ConfigError(f"there is no route to {host}: {error.strerror or error}") from error

    def control_link(self, address: str) -> ControlClient:
        self._zone = zone_of(parse_address(address).host)
        return ControlClient(address, self.credentials)

    async def control_door(self, attendant: Attendant, host: str, port: int) -> ControlDoor:
        server = ControlServer(attendant, self.credentials)
        await server.start(host, port)
        return server

    async def compute(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._steps, work)

    async def step(self, work: Callable[[], T], size: int) -> T:
        began = perf_counter()
        out = work() if size <= self._quick else await self.compute(work)
        self._quick = max(self._quick, size) if perf_counter() - began < _QUICK else 0
        return out

    async def load(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._loads, work)

    def close(self) -> None:
        """Lets the work in the threads finish."""
        self._steps.shutdown()
        self._loads.shutdown()
