"""Multicast DNS on the LAN: `_shoal._tcp.local.`, one service instance per head (RFC 6762 and 6763)."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import structlog
from zeroconf import DNSQuestionType, InterfaceChoice, IPVersion, NotRunningException, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from shoal.discovery.addresses import Address, nearest, of_this_machine, resolved
from shoal.discovery.advert import Advert, check_name
from shoal.discovery.base import MOST, check_update, choose, matching, nothing_found
from shoal.discovery.topology import Topology
from shoal.errors import ClusterError, ConfigError, RemoteProtocolError

log = structlog.get_logger()

SERVICE = "_shoal._tcp.local."
RESOLVE = 1.0  # seconds that one instance may take to report its address


class MdnsRegistry:
    """The end of one head or node.

    interfaces: addresses of this machine's interfaces to use, not ::1; None: all, and for a head on a loopback address only
                loopback, since nobody else could reach it
    settle:     seconds to listen for further clusters once one answered
    service:    another type keeps tests apart that run at once
    """

    def __init__(self, interfaces: Sequence[str] | None = None, settle: float = 0.5, service: str = SERVICE) -> None:
        self._interfaces = None if interfaces is None else list(interfaces)
        self._settle = settle
        self._service = service
        self._announced: _Announced | None = None

    def __repr__(self) -> str:
        return f"MdnsRegistry(interfaces={self._interfaces})"

    async def announce(self, advert: Advert) -> None:
        if self._announced is not None:
            return await self.update(advert)
        addresses = await self._addresses(advert)
        interfaces = self._interfaces
        if all(a.is_loopback for a in addresses):
            log.warning("only nodes on this machine can join", cluster=advert.cluster, address=advert.address)
            interfaces = interfaces or ["127.0.0.1"]  # for ::1 too: it has no multicast
        info = service_info(advert, addresses, self._service)
        zeroconf = await _opened(interfaces)
        try:
            # The instance's name is unique because of its suffix, so it need not be probed for (which takes 1.7 s).
            await _sent(cast(Any, zeroconf).async_register_service(info, cooperating_responders=True))
        except BaseException:
            await zeroconf.async_close()
            raise
        self._announced = _Announced(zeroconf, advert, info)
        return None

    async def update(self, advert: Advert) -> None:
        announced = self._announced
        check_update(announced.advert if announced else None, advert)
        if announced is None:
            return
        info = service_info(advert, await self._addresses(advert), self._service, announced.info.name)
        old, announced.advert, announced.info = announced.info, advert, info
        if (info.text, info.port, info.parsed_addresses()) != (old.text, old.port, old.parsed_addresses()):
            await _sent(cast(Any, announced.zeroconf).async_update_service(info))

    def show(self, look: Callable[[], Topology]) -> None:
        """Does nothing: it would not fit into records."""

    async def withdraw(self) -> None:
        announced, self._announced = self._announced, None
        if announced is not None:
            await announced.zeroconf.async_close()  # says goodbye

    async def find(self, cluster: str | None, timeout: float) -> Advert:
        if cluster is not None:
            check_name(cluster)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        # New sockets for each search: a cache from the last one could name a head that is gone.
        async with _listening(self._interfaces, self._service) as search:
            while not matching(await search.adverts(deadline), cluster):
                if not await search.change(deadline):
                    raise nothing_found(cluster, "on this network by mDNS", timeout, search.found.values())
            await asyncio.sleep(max(min(self._settle, deadline - loop.time()), 0))
            found = choose(await search.adverts(loop.time() + RESOLVE), cluster)
            if found is None:
                raise nothing_found(cluster, "on this network by mDNS", timeout, search.found.values())
            return found

    async def close(self) -> None:
        await self.withdraw()

    async def _addresses(self, advert: Advert) -> list[Address]:
        if advert.anywhere and self._interfaces is not None:
            return [ipaddress.ip_address(a) for a in self._interfaces]
        return await resolved(advert.host)


@dataclass
class _Announced:
    zeroconf: AsyncZeroconf
    advert: Advert
    info: AsyncServiceInfo


class _Search:
    """The instances found so far, and their adverts."""

    def __init__(self, zeroconf: AsyncZeroconf, service: str) -> None:
        self.found: dict[str, Advert] = {}
        self._zeroconf = zeroconf.zeroconf
        self._service = service
        self._names: set[str] = set()
        self._stale: set[str] = set()  # to be asked, again or for the first time
        self._refused: set[str] = set()
        self._changed = asyncio.Event()

    def heard(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        """A browser's handler; it runs in the event loop."""
        if state_change is ServiceStateChange.Removed:
            self._names.discard(name)
            self._stale.discard(name)
            self.found.pop(name, None)
        elif name in self._names or len(self._names) < MOST:
            self._names.add(name)
            self._stale.add(name)
        self._changed.set()

    async def change(self, deadline: float) -> bool:
        """Waits for a change until `deadline`; False if there was none."""
        try:
            async with asyncio.timeout_at(deadline):
                await self._changed.wait()
        except TimeoutError:
            return False
        return asyncio.get_running_loop().time() < deadline

    async def adverts(self, deadline: float) -> list[Advert]:
        """Asks the instances in `_stale`, until `deadline` and for RESOLVE seconds at most; returns all adverts known."""
        self._changed.clear()
        asked, self._stale = self._stale, set()
        patience = min(deadline - asyncio.get_running_loop().time(), RESOLVE)
        await asyncio.gather(*(self._ask(name, patience) for name in asked))
        return list(self.found.values())

    async def _ask(self, name: str, patience: float) -> None:
        info = AsyncServiceInfo(self._service, name)
        if not await info.async_request(self._zeroconf, max(patience, 0.001) * 1000, DNSQuestionType.QM):
            if name in self._names:  # the answer was lost or is late
                self._stale.add(name)
                self._changed.set()
            return
        try:
            advert = read_service(info)
        except RemoteProtocolError as error:
            self.found.pop(name, None)
            if name not in self._refused:
                self._refused.add(name)
                log.warning("an advert is ignored", source=name, reason=str(error))
            return
        if name in self._names:
            self.found[name] = advert


@asynccontextmanager
async def _listening(interfaces: list[str] | None, service: str) -> AsyncGenerator[_Search]:
    zeroconf = await _opened(interfaces)
    search = _Search(zeroconf, service)
    try:
        # Answers to all (QM): one only to us (QU) may reach another process of this machine that shares port 5353.
        browser = AsyncServiceBrowser(zeroconf.zeroconf, service, handlers=[search.heard], question_type=DNSQuestionType.QM)
        try:
            yield search
        finally:
            await browser.async_cancel()
    finally:
        await zeroconf.async_close()


async def _sent(registration: Coroutine[Any, Any, Any]) -> None:
    """Waits until a change has been multicast as often as RFC 6762 requires, about half a second."""
    await (await registration)


async def _opened(interfaces: list[str] | None) -> AsyncZeroconf:
    """Raises ClusterError if multicast cannot be used, ConfigError for an interface that this machine does not have."""
    if interfaces is not None and (foreign := {ipaddress.ip_address(i) for i in interfaces} - {i.ip for i in of_this_machine()}):
        raise ConfigError(f"{', '.join(map(str, foreign))} is not an address of this machine")  # zeroconf would leak a socket
    try:
        if interfaces is not None:
            zeroconf = AsyncZeroconf(interfaces=list[str | int | tuple[tuple[str, int, int], int]](interfaces))
        else:
            try:
                zeroconf = AsyncZeroconf(InterfaceChoice.All, ip_version=IPVersion.All)
            except OSError:  # a kernel without IPv6
                zeroconf = AsyncZeroconf(InterfaceChoice.All, ip_version=IPVersion.V4Only)
        await zeroconf.zeroconf.async_wait_for_start()
    except (OSError, RuntimeError, NotRunningException) as error:
        where = f" on {', '.join(interfaces)}" if interfaces else ""
        raise ClusterError(f"mDNS does not work here{where} ({error}); give the head's address: `shoal join HOST:PORT`") from error
    return zeroconf


def service_info(advert: Advert, addresses: Sequence[Address], service: str = SERVICE, name: str | None = None) -> AsyncServiceInfo:
    """The records of an advert. Without `name`, the instance gets one that no other head has, not even of a cluster with the same name.

    The suffix comes from machine and port: a restarted head replaces its old records, in whatever cache they are.
    """
    if name is None:
        own = f"{uuid.getnode()} {advert.host} {advert.control_port}"
        name = f"{advert.cluster}-{hashlib.sha256(own.encode()).hexdigest()[:8]}.{service}"
    return AsyncServiceInfo(
        service,
        name,
        port=advert.control_port,
        properties=advert.to_txt(),
        server=f"shoal-{name.removesuffix('.' + service)}.local.",
        addresses=[a.packed for a in addresses],
    )


def read_service(info: AsyncServiceInfo) -> Advert:
    """The advert in a service's records, at the address nearest to this machine. Raises RemoteProtocolError."""
    candidates = [ipaddress.ip_address(a) for a in info.parsed_scoped_addresses()]
    host = nearest(candidates, of_this_machine())
    if host is None or info.port is None:
        raise RemoteProtocolError("an advert without an address")
    return Advert.from_txt(info.properties, str(host), info.port)
