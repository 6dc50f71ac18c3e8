"""Which keys a process works with: the head's authority, a node's certificate."""

from __future__ import annotations

import re
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic
from typing import TypeVar

from shoal.cli.show import err
from shoal.config import HeadSettings, NodeSettings, keys_dir
from shoal.errors import ClusterError
from shoal.node.agent import parse_address
from shoal.security.authority import Authority
from shoal.security.certificates import Role
from shoal.security.credentials import Credentials
from shoal.security.pairing_code import PairingCode
from shoal.security.pairing_desk import PairingDesk
from shoal.security.pairing_service import Paired, PairingEvent, PairingListener, pair, serve_pairing

T = TypeVar("T")


def authority() -> Authority:
    """This machine's, made on first use. Raises ConfigError."""
    return Authority.open(keys_dir() / "authority")


def head_credentials(settings: HeadSettings) -> Credentials | None:
    """Fresh ones for a protected head. Raises ConfigError."""
    return authority().credentials(Role.HEAD, "head") if settings.protected else None


async def open_desk(settings: HeadSettings, control_port: int, joining: str) -> PairingListener:
    """Lets nodes pair, and shows each code. joining: the command that a node is to run. Raises ConfigError."""

    def show(code: PairingCode) -> None:
        err.print(f"pairing code [bold]{code}[/bold], good for one machine: {joining} --code {code}", highlight=False)

    def tell(event: PairingEvent) -> None:
        if isinstance(event, Paired):
            err.print(f"{event.name} at {event.peer} has paired", markup=False)
        else:
            err.print(f"a pairing from {event.peer} was refused: {event.reason}", markup=False)

    desk = PairingDesk(on_code=show)
    listener = await serve_pairing(settings.host, settings.pairing_port or control_port + 1, desk, authority(), tell)
    desk.code(monotonic())
    return listener


def _kept(address: str) -> Path:
    return keys_dir() / (re.sub(r"[^A-Za-z0-9.]+", "-", address).strip("-") + ".pem")


async def node_credentials(settings: NodeSettings, address: str, pairing_port: int = 0) -> Credentials | None:
    """By the code, or from an earlier pairing with this address. Raises PairingRefused, ConfigError, ClusterError, RemoteProtocolError."""
    path = _kept(address)
    if settings.code:
        host, port = parse_address(address)
        credentials = await pair(host, pairing_port or port + 1, PairingCode(settings.code), settings.name or socket.gethostname())
        credentials.save(path)
        return credentials
    return Credentials.load(path) if path.exists() else None


def certify(address: str) -> None:
    """Gives the nodes of this machine a certificate for the head that runs on it."""
    authority().credentials(Role.NODE, socket.gethostname()).save(_kept(address))


async def as_operator(address: str, ask: Callable[[Credentials | None], Awaitable[T]]) -> T:
    """Asks a head something with what keys there are: this machine's authority, a certificate of an earlier pairing, or none."""
    tries: list[Credentials | None] = []
    if (keys_dir() / "authority").exists():
        tries.append(authority().credentials(Role.HEAD, "operator"))
    if _kept(address).exists():
        tries.append(Credentials.load(_kept(address)))
    failure: ClusterError | None = None
    for credentials in (*tries, None):
        try:
            return await ask(credentials)
        except ClusterError as error:
            failure = failure or error
    assert failure is not None
    raise failure
