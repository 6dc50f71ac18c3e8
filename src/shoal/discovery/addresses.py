"""The addresses at which a head can be reached, and the one nearest to a node. The choice is pure."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Iterable, Sequence

import ifaddr

from shoal.address import is_wildcard, of_socket
from shoal.errors import ConfigError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


def of_this_machine() -> list[Interface]:
    """Every address of this machine, with its network, best first."""
    found: list[Interface] = []
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            text = ip.ip if isinstance(ip.ip, str) else ip.ip[0]
            found.append(ipaddress.ip_interface(f"{text.partition('%')[0]}/{ip.network_prefix}"))
    return sorted(found, key=lambda i: _rank(i.ip))


def reachable(addresses: Iterable[Address]) -> list[Address]:
    """Those worth telling others: loopback and link-local addresses only if there are no others."""
    ordered = sorted(set(addresses), key=_rank)
    away = [a for a in ordered if not a.is_loopback]
    return [a for a in away if not a.is_link_local] or away or ordered


def nearest(candidates: Sequence[Address], ours: Sequence[Interface]) -> Address | None:
    """The head's address that a machine with the interfaces `ours` should use; None if there is none.

    If the head has an address that is not ours, it is on another machine. Addresses that both have, such as docker0's
    172.17.0.1, then lead back to this machine.
    """
    own = {i.ip.packed for i in ours}  # without the scope of a link-local address
    elsewhere = [a for a in candidates if a.packed not in own and not a.is_loopback]
    usable = elsewhere or list(candidates)
    return min(usable, key=lambda a: (not any(a in i.network for i in ours), _rank(a)), default=None)


async def resolved(host: str) -> list[Address]:
    """The addresses of a host name, an address, or a wildcard; only those that others can reach. Raises ConfigError."""
    if is_wildcard(host):
        every = [i.ip for i in of_this_machine()]
        return reachable(a for a in every if a.version == 4 or ":" in host)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"cannot announce {host}: it does not resolve ({error.strerror or error}); give an address") from error
    return reachable(ipaddress.ip_address(str(entry[4][0])) for entry in found)


async def facing(peer: str, port: int, wildcard: str) -> str:
    """For a head that listens on `wildcard` (0.0.0.0 or ::): its address on the way to `peer`, which others can reach too.

    Nothing is sent. If that way is loopback, or there is none, it is the best address of this machine. Raises ConfigError.
    """
    addresses = await resolved(wildcard)
    family = socket.AF_INET if ":" not in wildcard else socket.AF_UNSPEC
    try:
        found = await asyncio.get_running_loop().getaddrinfo(peer, port, family=family, type=socket.SOCK_DGRAM)
        with socket.socket(found[0][0], socket.SOCK_DGRAM) as probe:
            probe.connect(found[0][4])
            ours = ipaddress.ip_address(of_socket(probe.getsockname()).partition("%")[0])
    except OSError:  # the peer has another name or route; whoever connects to it will report that
        ours = None
    if ours is not None and ours in addresses:
        return str(ours)
    if not addresses:
        raise ConfigError(f"this machine has no address to announce for {wildcard}; give one with --host")
    return str(addresses[0])


def reached_at(host: str) -> str:
    """The address that others use to reach a listener at `host`: itself, or, for 0.0.0.0 and ::, this machine's address on its
    way to the internet.

    Nothing is sent. Without such a way it is the best address of this machine.
    """
    if not is_wildcard(host):
        return host
    every = reachable(i.ip for i in of_this_machine() if i.version == 4 or ":" in host)
    for family, somewhere in ((socket.AF_INET, "198.51.100.1"), (socket.AF_INET6, "2001:db8::1")):  # for documentation: RFC 5737, 3849
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((somewhere, 9))
            if (ours := ipaddress.ip_address(of_socket(probe.getsockname()))) in every:
                return str(ours)
    return str(every[0]) if every else ("::1" if ":" in host else "127.0.0.1")


def _rank(address: Address) -> tuple[int, int, int]:
    """IPv4 before IPv6, link-local after both, loopback last."""
    distance = 2 if address.is_loopback else 1 if address.is_link_local else 0
    return distance, address.version, int(address)
