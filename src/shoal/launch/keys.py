"""The keys of a cluster that runs on this machine."""

from __future__ import annotations

import re
import socket
from pathlib import Path

from shoal.address import parse_address
from shoal.config import HeadSettings
from shoal.folders import keys_dir
from shoal.security.authority import Authority
from shoal.security.certificates import Role
from shoal.security.credentials import Credentials


def authority() -> Authority:
    """This machine's authority, created on first use. Raises ConfigError."""
    return Authority.open(keys_dir() / "authority")


def head_credentials(settings: HeadSettings) -> Credentials | None:
    """New credentials for a protected head. Raises ConfigError."""
    return authority().credentials(Role.HEAD, "head") if settings.protected else None


def kept_path(address: str) -> Path:
    """The path of a node's credentials for host:port or a cluster's name; an IPv6 address keeps its colons apart."""
    known = str(parse_address(address)) if ":" in address else address  # one name for all forms of an address
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", known.replace("[", "").replace("]", ""))
    return keys_dir() / f"{plain}.pem"


def kept_gateway_path(address: str) -> Path:
    """The path of a gateway's credentials for host:port."""
    path = kept_path(address)
    return path.with_name(f"gateway-{path.name}")


def certify(address: str) -> None:
    """Gives the nodes of this machine a certificate for the head that runs on it."""
    authority().credentials(Role.NODE, socket.gethostname()).save(kept_path(address))
