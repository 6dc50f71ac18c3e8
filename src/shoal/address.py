"""Addresses: the only module that reads, checks, writes and listens on them.

A host is an IPv4 address, an IPv6 address without brackets, with a zone if it is link-local (fe80::1%eth0), or a name. With a
port, an IPv6 address is in brackets: [::1]:7420 (RFC 3986, section 3.2.2).
"""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
from typing import Any, NamedTuple

from shoal.errors import ConfigError

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\.?\Z){_LABEL}(?:\.{_LABEL})*\.?")
_ZONE = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_PORT = re.compile(r"[0-9]{1,5}")
_WRITE = "write HOST:PORT, like 192.168.1.20:7420 or [fd00::5]:7420"


class Address(NamedTuple):
    """Where something listens, as a connecting side names it."""

    host: str
    port: int

    def __str__(self) -> str:
        return join_host_port(self.host, self.port)


def join_host_port(host: str, port: int) -> str:
    """'::1', 7420 → '[::1]:7420'."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def http_url(host: str, port: int) -> str:
    """'fe80::1%eth0', 8000 → 'http://[fe80::1%25eth0]:8000' (RFC 6874)."""
    return f"http://{join_host_port(host.replace('%', '%25'), port)}"


def parse_address(text: str) -> Address:
    """'host:7420', '[::1]:7420'. Raises ConfigError, which says how to write what was probably meant."""
    host, colon, port = text.strip().rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    number = int(port) if colon and _PORT.fullmatch(port) and 0 < int(port) < 65536 else None
    if ":" in host and not bracketed:
        if number is not None and is_host(host):
            raise ConfigError(f"'{text[:80]}' is not an address: an IPv6 address goes in brackets; write [{host}]:{port}")
        if is_host(text):
            raise ConfigError(f"'{text[:80]}' is not an address: the port is missing; write [{text}]:PORT")
        raise ConfigError(f"'{text[:80]}' is not an address; {_WRITE}")
    if number is None or not host or (bracketed and ":" not in host):
        raise ConfigError(f"'{text[:80]}' is not an address; {_WRITE}")
    try:
        found = parse_host(host)
    except ConfigError:
        raise ConfigError(f"'{text[:80]}' is not an address; {_WRITE}") from None
    if is_wildcard(found):
        raise ConfigError(f"'{text[:80]}': {found} means every address of the listening machine; write one of them")
    return Address(found, number)


def parse_host(text: str) -> str:
    """A host in its stored form: without brackets, IPv6 shortened. Raises ConfigError."""
    bare = text.strip()
    if bare.startswith("[") and bare.endswith("]"):
        bare = bare[1:-1]
    head, _, zone = bare.partition("%")
    if zone.startswith("25") and len(zone) > 2 and not zone.isdigit():  # as in URLs
        bare = f"{head}%{zone[2:]}"
    if not is_host(bare):
        hint = "; without its port" if ":" in bare and is_host(bare.rpartition(":")[0].strip("[]")) else ""
        raise ConfigError(f"'{text[:80]}' is not a host; write an address like 192.168.1.20 or fd00::5, or a name{hint}")
    if (address := _ip(bare)) is None:
        return bare
    return str(_unmapped(address))


def is_host(text: str) -> bool:
    """Whether it is an address that a machine can have, or a possible name."""
    if (address := _ip(text)) is None:
        # A text that ends in a number is meant as an address: 10.0.0.256 is not a name.
        return _NAME.fullmatch(text) is not None and not text.rstrip(".").split(".")[-1].isdigit()
    if address.is_multicast:
        return False
    return "%" not in text or (address.version == 6 and _ZONE.fullmatch(text.partition("%")[2]) is not None)


def is_wildcard(host: str) -> bool:
    """0.0.0.0 and ::."""
    address = _ip(host)
    return address is not None and address.is_unspecified


def is_loopback(host: str) -> bool:
    """Whether it is an address that only this machine reaches, or its name."""
    address = _ip(host)
    return host.rstrip(".").lower() == "localhost" if address is None else _unmapped(address).is_loopback


def is_link_local(host: str) -> bool:
    """Whether it is an IPv6 address that is only valid on one link, and needs the link's name: the zone."""
    address = _ip(host)
    return address is not None and address.version == 6 and address.is_link_local


def zone_of(host: str) -> str:
    return host.partition("%")[2]


def in_zone(host: str, zone: str) -> str:
    """A link-local address in this machine's form: other machines have other names for the same link."""
    return f"{host.partition('%')[0]}%{zone}" if zone and is_link_local(host) else host


def of_socket(name: Any) -> str:
    """The host in the result of getsockname() or getpeername() of an IP socket, with its zone."""
    host, scope = str(name[0]).partition("%")[0], name[3] if len(name) > 3 else 0
    if scope and is_link_local(host):
        return in_zone(host, socket.if_indextoname(scope))
    return parse_host(host)


def grpc_target(address: str) -> str:
    """gRPC's target for 'host:port' or '[v6]:port'. Raises ConfigError."""
    host, port = parse_address(address)
    return f"ipv6:[{host.replace('%', '%25')}]:{port}" if ":" in host else f"{host}:{port}"


def listening_socket(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet; `::` also accepts IPv4. For a name, its first address, IPv4 before IPv6. Raises
    ConfigError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"cannot listen on {host}: {getattr(error, 'strerror', None) or error}") from error
    family, kind, protocol, _, where = min(found, key=lambda info: info[0] != socket.AF_INET)
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if is_wildcard(host) else 1)
        bound.bind(where)
        bound.setblocking(False)
    except OSError as error:
        bound.close()
        raise _refused(host, port, error) from error
    return bound


def _refused(host: str, port: int, error: OSError) -> ConfigError:
    """Why nothing can listen on an address, and what to do."""
    if error.errno == errno.EADDRINUSE:
        return ConfigError(f"port {port} on {host} is in use; stop the process that uses it, or choose another port")
    if error.errno == errno.EADDRNOTAVAIL:
        return ConfigError(f"{host} is not an address of this machine")
    if error.errno == errno.EACCES:
        return ConfigError(f"this user may not listen on port {port}; choose one above 1023")
    if error.errno == errno.EINVAL and is_link_local(host) and not zone_of(host):
        return ConfigError(f"{host} is link-local: name the interface, like {host}%eth0")
    return ConfigError(f"cannot listen on {join_host_port(host, port)}: {error.strerror or error}")


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _unmapped(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """::ffff:10.0.0.7, as a dual-stack socket reports it, is 10.0.0.7."""
    return getattr(address, "ipv4_mapped", None) or address
