"""The keys that a process uses: the head's authority, a node's certificate."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import monotonic, time
from typing import TYPE_CHECKING, TypeVar

from shoal.address import is_loopback, parse_address
from shoal.cli.relocation import move_in
from shoal.cli.show import line
from shoal.cli.waiting import a_line
from shoal.config import HeadSettings, NodeSettings
from shoal.control.client import locked
from shoal.discovery.advert import Advert
from shoal.errors import ClusterError, ConfigError, PairingRefused
from shoal.folders import keys_dir
from shoal.launch.keys import authority, head_credentials, kept_credentials, kept_path
from shoal.observed.cluster import Invitation
from shoal.security.authority import Authority
from shoal.security.certificates import Role
from shoal.security.credentials import Credentials
from shoal.security.pairing_code import PairingCode
from shoal.security.pairing_desk import PairingDesk
from shoal.security.private_file import check_writable

if TYPE_CHECKING:
    from shoal.node.head import Head
    from shoal.security.pairing_service import PairingEvent

T = TypeVar("T")


@asynccontextmanager
async def pairing_desk(settings: HeadSettings, head: Head, joining: str, of: Authority | None = None) -> AsyncGenerator[int]:
    """Lets nodes pair, and shows each code; yields the port, 0 for a head that needs none. Raises ConfigError.

    joining: the command to run on a node, which operators are told, too. of: the cluster's authority, if it is not this machine's
    """
    address, control_port = joining.rpartition(" ")[2], head.control_port
    if not settings.protected:
        head.operator.invitation = lambda: Invitation(address, joining)
        yield 0
        return
    from shoal.security.pairing_service import Paired, serve_pairing  # its curve takes 20 ms to set up

    if settings.pairing_port:
        joining += f" --pairing-port {settings.pairing_port}"

    def show(code: PairingCode) -> None:
        line(f"pairing code {code}, good for one machine: {joining} --code {code}", "bold")

    def tell(event: PairingEvent) -> None:
        if isinstance(event, Paired):
            line(f"{event.name} at {event.peer} has paired" + (f" as a {event.role.value}" if event.role is not Role.NODE else ""))
        else:
            words = f"a pairing from {event.peer} was refused: {event.reason}"
            line(words)
            head.operator.refused(words)

    desk = PairingDesk(on_code=show)
    listener = await serve_pairing(
        settings.host, settings.pairing_port or control_port + 1, desk, of or authority(), tell, heads=bool(settings.lease)
    )
    desk.code(monotonic())

    def invite() -> Invitation:
        now = monotonic()
        code = desk.code(now)
        return Invitation(address, f"{joining} --code {code}", str(code), time() + desk.expires(now))

    head.operator.invitation = invite
    try:
        yield listener.port
    finally:
        await listener.close()


async def standby_credentials(settings: HeadSettings) -> Credentials | None:
    """A head's credentials for a head of several: by the code, from an earlier pairing with the head that it stands by for, or from this
    machine's authority. None if the cluster is not protected.

    Raises PairingRefused, ConfigError, ClusterError, RemoteProtocolError.
    """
    if not settings.protected:
        if settings.code:
            raise ConfigError("--code: this head is not protected, and so needs no pairing; --host ADDRESS or --secure protects it")
        return None
    if not settings.standby:
        return head_credentials(settings)
    path = kept_path(settings.standby, Role.HEAD)
    if settings.code:
        from shoal.security.pairing_service import pair

        check_writable(path)  # the code works only once
        host, port = parse_address(settings.standby)
        paired = await pair(host, settings.pairing_port or port + 1, PairingCode(settings.code), socket.gethostname(), role=Role.HEAD)
        paired.save(path)
        return paired
    return kept_credentials(path, Role.HEAD) if path.exists() else head_credentials(settings)


def check_keys(settings: NodeSettings) -> None:
    """Called before waiting for a head: checks that keys have a place and that the certificate for a code can be stored. Raises
    ConfigError."""
    folder = keys_dir()
    if settings.code:
        check_writable(folder / "new")


async def node_credentials(settings: NodeSettings, address: str, found: Advert | None = None) -> Credentials | None:
    """By the code, or from an earlier pairing with this address or, if it was found by name, with this cluster.

    Raises PairingRefused, ConfigError, ClusterError, RemoteProtocolError.
    """
    paths = [kept_path(address), *([kept_path(found.cluster)] if found is not None else [])]
    if settings.code:
        from shoal.security.pairing_service import pair

        host, port = parse_address(address)
        pairing_port = settings.pairing_port or (found.pairing_port if found is not None else 0) or port + 1
        for path in paths:
            check_writable(path)  # the code works only once
        credentials = await pair(host, pairing_port, PairingCode(settings.code), settings.name or socket.gethostname())
        for path in paths:
            credentials.save(path)
        return credentials
    kept = [path for path in paths if path.exists()]
    if found is not None and not found.secure:
        if kept:  # anyone can announce anything: a cluster that once required a certificate must keep requiring one
            raise ConfigError(
                f"this machine has paired with cluster {found.cluster}, and what answers at {found.address} is not protected; if that "
                f"is meant, delete {kept[0]}"
            )
        return None
    if found is not None and not kept:
        raise ConfigError(f"cluster {found.cluster} needs its pairing code, which `shoal serve` shows: --code CODE")
    return Credentials.load(kept[0]) if kept else None


async def asked_for_code(settings: NodeSettings, address: str, found: Advert | None, stop: asyncio.Event) -> Credentials | None:
    """Like `node_credentials`, but asks the user at the terminal for the code if one is needed and none was given.

    Raises the same errors, and KeyboardInterrupt if the user has no code.
    """
    secure = found.secure if found is not None else True
    paired = any(path.exists() for path in (kept_path(address), *([kept_path(found.cluster)] if found is not None else [])))
    if settings.code or paired or not secure or not sys.stdin.isatty() or not await locked(address):
        return await node_credentials(settings, address, found)
    line(f"the head at {address} lets in who knows its pairing code, which it shows")
    while (code := await a_line("pairing code: ", stop)) is not None:
        try:
            return await node_credentials(dataclasses.replace(settings, code=code.strip() or "none"), address, found)
        except (ConfigError, PairingRefused) as error:
            line(str(error), "red")
    raise KeyboardInterrupt


async def as_operator(address: str, ask: Callable[[Credentials | None], Awaitable[T]]) -> T:
    """Asks a head something with the available keys: this machine's authority, a certificate of an earlier pairing, or none.

    A remote head that this machine has paired with is never asked without a key: whoever interrupts the TLS connection could
    answer in its place.
    """
    move_in()
    host, _ = parse_address(address)
    tries: list[Credentials | None] = []
    if (keys_dir() / "authority").exists():
        tries.append(authority().credentials(Role.HEAD, "operator"))
    kept = [path for role in (Role.HEAD, Role.NODE) if (path := kept_path(address, role)).exists()]
    tries += [Credentials.load(path) for path in kept]
    if is_loopback(host) or not kept:
        tries.append(None)
    failure: ClusterError | None = None
    for credentials in tries:
        try:
            return await ask(credentials)
        except ClusterError as error:
            failure = failure or error
    assert failure is not None
    raise failure
