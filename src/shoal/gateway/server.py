"""Runs an application inside the event loop of its process."""

from __future__ import annotations

import contextlib
import functools
import socket
from collections.abc import Generator
from typing import Any, Protocol

import uvicorn
from fastapi import FastAPI

from shoal.address import listening_socket
from shoal.beside import beside
from shoal.config import ListenerSettings
from shoal.gateway.auth.gate import MAX_HEADER_BYTES, MAX_TARGET
from shoal.gateway.auth.keyring import Keyring
from shoal.gateway.http.connection import Connection, Connections, SocketConnection
from shoal.gateway.http.in_flight import InFlight
from shoal.gateway.http.stall_timeouts import rules
from shoal.gateway.service import MAX_BODY

_SEND_BUFFER = 128 << 10
"""Kernel buffer per connection; by default it grows to megabytes for a client that does not read."""
_SPARE_FILES = 200
"""File descriptors reserved for everything except client connections."""


class ServedApp(Protocol):
    """What a server needs of its application: see Service."""

    in_flight: InFlight
    keyring: Keyring


class QuietServer(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield  # the command line handles signals


@contextlib.contextmanager
def listening(host: str, port: int) -> Generator[socket.socket]:
    """A listening socket. Raises ConfigError if the address cannot be used."""
    with listening_socket(host, port) as address:
        address.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)  # accepted connections inherit it
        address.listen(2048)  # now, so that a second server on this port fails here
        yield address


def _most_connections(wanted: int) -> int:
    """As many as wanted, or as this process may open files."""
    try:
        import resource
    except ImportError:  # Windows
        return wanted
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if files == resource.RLIM_INFINITY else max(min(wanted, files - _SPARE_FILES), 1)


class ApiServer:
    def __init__(self, app: FastAPI, address: socket.socket, settings: ListenerSettings | None = None) -> None:
        """app: from `create_app`. address: from `listening`; whoever opened it closes it."""
        settings = settings or ListenerSettings()
        self._socket = address
        self._service: ServedApp = app.state.service
        self.connections = Connections(_most_connections(settings.connections), rules(settings.stall))
        protocol: Any = functools.partial(Connection, self.connections)
        self._server = QuietServer(
            uvicorn.Config(
                app,
                http=protocol,
                log_level="error",
                log_config=None,  # its lines go to the common log
                lifespan="on",
                access_log=False,
                server_header=False,
                timeout_keep_alive=settings.keep_alive,  # pyright: ignore[reportArgumentType]
                timeout_graceful_shutdown=5,
                h11_max_incomplete_event_size=MAX_HEADER_BYTES + MAX_TARGET,
                ws=SocketConnection,
                ws_ping_interval=settings.stall,
                ws_ping_timeout=settings.stall,
                ws_max_size=MAX_BODY,
                ws_max_queue=4,
                ws_per_message_deflate=False,  # chunks are small and many
            )
        )

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    @property
    def started(self) -> bool:
        return self._server.started

    async def serve(self) -> None:
        """Runs until stop() is called."""
        async with beside(self.connections.watch(), self._service.keyring.keep()):
            await self._server.serve(sockets=[self._socket])

    async def finish(self) -> None:
        """Accepts no more requests, and waits until the current ones are answered."""
        self._service.in_flight.close()
        await self._service.in_flight.emptied()

    @property
    def inside(self) -> int:
        """Unfinished requests."""
        return self._service.in_flight.inside

    def stop(self) -> None:
        """Ends what is still open within a few seconds."""
        self.connections.hang_up()
        self._server.should_exit = True

    def drop(self) -> None:
        """Ends all connections at once and without a last message, as if the process were killed."""
        self.connections.drop()
        self._server.should_exit = True
