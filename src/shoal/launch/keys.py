"""The keys of a cluster that runs on this machine."""

from __future__ import annotations

import datetime as dt
import re
import socket
from pathlib import Path

from shoal.address import parse_address
from shoal.config import HeadSettings
from shoal.errors import ConfigError
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


def kept_path(address: str, role: Role = Role.NODE) -> Path:
    """The path of the credentials that this machine got by pairing, for host:port or a cluster's name; an IPv6 address keeps its colons apart."""
    known = str(parse_address(address)) if ":" in address else address  # one name for all forms of an address
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", known.replace("[", "").replace("]", ""))
    return keys_dir() / (f"{plain}.pem" if role is Role.NODE else f"{role.value}-{plain}.pem")


def kept_credentials(path: Path, role: Role) -> Credentials:
    """What an earlier pairing as that role left there. Raises ConfigError if it is another role's or would be refused now."""
    credentials = Credentials.load(path)
    if credentials.role is not role:
        raise ConfigError(
            f"{path} holds a {credentials.role.value}'s certificate, not a {role.value}'s; delete it and pair with --code CODE"
        )
    credentials.check(dt.datetime.now(dt.UTC))
    return credentials


def certify(address: str) -> None:
    """Gives the nodes of this machine a certificate for the head that runs on it."""
    authority().credentials(Role.NODE, socket.gethostname()).save(kept_path(address))
