"""The heads that a gateway may serve: it uses the first that takes it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from shoal import __version__
from shoal.address import Address, join_host_port
from shoal.control.client import describe, locked, refused
from shoal.errors import ClusterError, ConfigError, NotPaired, ShoalError, UserError, VersionMismatch
from shoal.gateway.workers.client import RemoteEngines
from shoal.gateway.workers.greeting import greet
from shoal.launch.gateway_door import keep_alive
from shoal.launch.tokenizers import opened
from shoal.security.certificates import Role, server_name
from shoal.security.credentials import Credentials

_PATIENCE = 10.0  # seconds for a connection
_LONGEST = 30.0  # seconds until a head has taken a gateway


class HeadSearch:
    def __init__(self, addresses: Sequence[Address], credentials: Credentials | None, name: str, cache: Path) -> None:
        """addresses: of control ports. name: the gateway's. cache: where what tokenizers are opened from is put."""
        self._addresses, self._credentials, self._name, self._cache = [*addresses], credentials, name, cache
        self._context = credentials.client_context() if credentials is not None else None
        self.address = str(self._addresses[0])
        """Of the head that took this gateway last."""

    async def connect(self) -> RemoteEngines:
        """Tries one after another. Raises ShoalError: of the only one, or what all of them said; one that takes no gateways now may take
        some when it leads."""
        failures: list[ShoalError] = []
        for address in self._addresses:
            try:
                engines = await self._connect(address)
            except ShoalError as error:
                failures.append(error)
            else:
                self.address = str(address)
                return engines
        if len(failures) == 1 or all(isinstance(error, NotPaired | VersionMismatch) for error in failures):
            raise failures[0]
        raise ClusterError("no head serves: " + "; ".join(str(error) for error in failures))

    async def _connect(self, address: Address) -> RemoteEngines:
        """Raises ShoalError."""
        try:
            async with asyncio.timeout(_LONGEST):
                return await self._joined(address)
        except TimeoutError:
            raise ClusterError(f"the head at {address} does not take this gateway within {_LONGEST:g} s") from None

    async def _joined(self, address: Address) -> RemoteEngines:
        """Raises ShoalError."""
        where = str(address)
        if (why := await refused(where)) is not None:
            raise ClusterError(f"no head at {where}: {why.why}")
        if self._credentials is None and await locked(where):
            raise NotPaired(where)
        told = await describe(where, self._credentials)
        if not (port := told.gateway_port):
            if not told.cluster:
                raise ClusterError(f"no head leads at {where}: {''.join(told.events)}")
            raise ConfigError(f"the head at {where} takes no gateways; start it with --gateway-port PORT")
        tls: dict[str, Any] = {}
        if self._context is not None:
            tls = {"ssl": self._context, "server_hostname": server_name(Role.HEAD), "ssl_handshake_timeout": _PATIENCE}
        door = join_host_port(address.host, port)
        try:
            async with asyncio.timeout(_PATIENCE):
                reader, writer = await asyncio.open_connection(address.host, port, **tls)
        except OSError as error:  # TimeoutError is one
            why = getattr(error, "strerror", None) or str(error) or f"no answer within {_PATIENCE:g} s"
            raise ClusterError(f"the gateway port {door} of the head cannot be reached: {why}") from error
        with ExitStack() as stack:
            stack.callback(writer.close)
            try:
                keep_alive(writer)
                await greet(reader, writer, __version__)
                engines = await RemoteEngines.join(reader, writer, opened, self._name, self._cache)
            except TimeoutError as error:
                raise ClusterError(f"the gateway port {door} of the head is open, but nothing answers there") from error
            except (EOFError, OSError) as error:
                raise ClusterError(f"the head at {where} hung up") from error
            except ConfigError as error:
                raise ConfigError(f"the head at {where} takes no such gateway: {error}") from error
            except VersionMismatch as error:
                raise VersionMismatch(f"{error.theirs} (the head at {where})", error.ours) from error
            stack.pop_all()
        return engines


def is_final(error: ShoalError) -> bool:
    """Whether it makes no sense to try again until somebody has changed something."""
    return isinstance(error, UserError | VersionMismatch | NotPaired)
