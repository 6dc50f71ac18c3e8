"""The head's port for gateways: TLS with a certificate of the role, if the cluster has certificates; then the conversation of a worker."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any

import structlog

from shoal import __version__
from shoal.address import join_host_port, listening_socket, of_socket
from shoal.errors import ConfigError, ProtocolError
from shoal.gateway.workers.greeting import answer
from shoal.gateway.workers.server import EngineServer
from shoal.security.certificates import Role, role_of

log = structlog.get_logger()

MOST = 256
"""Connections at once."""
_HANDSHAKE = 10.0  # seconds for TLS
_SILENT = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 25_000}
"""Options of a socket with which a machine that has lost its network counts as gone after half a minute."""


class GatewayDoor:
    def __init__(self, engines: EngineServer, host: str, port: int, context: ssl.SSLContext | None) -> None:
        """context: of the cluster's certificates; None: there are none, and whoever reaches the port is taken."""
        self._engines, self._host, self._port, self._context = engines, host, port, context
        self._open: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

    async def start(self) -> None:
        """Raises ConfigError if the address cannot be used."""
        try:
            bound = await asyncio.to_thread(listening_socket, self._host, self._port)
        except ConfigError as error:
            raise ConfigError(f"--gateway-port: {error}") from None
        limits: dict[str, Any] = {} if self._context is None else {"ssl_handshake_timeout": _HANDSHAKE}
        self._server = await asyncio.start_server(self._accept, sock=bound, ssl=self._context, **limits)

    async def close(self) -> None:
        self._server.close()
        for writer in self._open.values():
            writer.transport.abort()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        address: Any = writer.get_extra_info("peername")
        peer = join_host_port(of_socket(address), address[1]) if address else "a peer that is gone"
        try:
            if len(self._open) > MOST:
                log.warning("a gateway was turned away: there are too many", peer=peer)
                return
            keep_alive(writer)
            await answer(reader, writer, __version__, self._refusal(writer))
            await self._engines.converse(reader, writer, peer)
        except (ProtocolError, EOFError, OSError) as error:
            log.warning("a gateway was not taken", peer=peer, reason=str(error))
        finally:
            del self._open[task]
            writer.close()

    def _refusal(self, writer: asyncio.StreamWriter) -> str:
        """Why it may not act as a gateway; '' if it may."""
        if self._context is None:
            return ""
        certificate: Any = writer.get_extra_info("peercert") or {}
        names = [name for kind, name in certificate.get("subjectAltName", ()) if kind == "DNS"]
        if (role := role_of(names)) is Role.GATEWAY:
            return ""
        return (
            f"its certificate is a {role.value if role else 'stranger'}'s, not a gateway's; pair with `shoal gateway HOST:PORT --code CODE`"
        )


def keep_alive(writer: asyncio.StreamWriter) -> None:
    """Has the system notice that the other machine is gone."""
    raw: Any = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in _SILENT.items():
        if hasattr(socket, name):
            raw.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
