"""Where etcd is: etcd://[USER:PASSWORD@]HOST:PORT[,HOST:PORT…], and etcds:// with TLS."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

from shoal.address import join_host_port, parse_address
from shoal.errors import ConfigError

PORT = 2379
_FILES = {"ca", "cert", "key"}
_WRITE = "write etcd://HOST:2379, with the other members after commas, or etcds:// with TLS"


@dataclass(frozen=True, repr=False)
class EtcdUrl:
    """members: http or https URLs; shown: for messages, without the password; files: of TLS, by `ca`, `cert` and `key`."""

    members: tuple[str, ...]
    shown: str
    user: str
    password: str
    files: dict[str, str]

    def __repr__(self) -> str:
        return f"EtcdUrl({self.shown})"

    def tls(self) -> ssl.SSLContext | None:
        """None: without TLS. Raises ConfigError."""
        if not self.members[0].startswith("https:"):
            return None
        try:
            context = ssl.create_default_context(cafile=self.files.get("ca"))
            if "cert" in self.files:
                context.load_cert_chain(self.files["cert"], self.files.get("key"))
        except OSError as error:
            raise ConfigError(f"the certificates for {self.shown} cannot be read: {error.strerror or error}") from None
        return context


def parse(text: str) -> EtcdUrl:
    """Raises ConfigError, which never quotes the password."""
    scheme, _, rest = text.partition("://")
    scheme = scheme.lower()
    members = re.split(r"[/?#]", rest, maxsplit=1)[0]
    parts = urlsplit(f"etcd://host{rest[len(members) :]}")  # which takes no lists of hosts with one of IPv6 among them
    account, _, hosts = members.rpartition("@")
    user, _, password = account.partition(":")
    shown = f"{scheme}://{f'{user}:***@' if account else ''}{hosts}"
    if scheme not in ("etcd", "etcds") or not hosts or parts.path not in ("", "/") or parts.fragment:
        raise ConfigError(f"{shown} is no address of etcd; {_WRITE}")
    if account and not (user and password):
        raise ConfigError(f"{shown} names a user without a password; write etcd://USER:PASSWORD@HOST:PORT")
    files = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    if unknown := files.keys() - _FILES:
        raise ConfigError(f"{shown} has {len(unknown)} unknown options; known are {', '.join(sorted(_FILES))}")
    if files and scheme == "etcd":
        raise ConfigError(f"{shown} names files of TLS; write etcds://")
    if "key" in files and "cert" not in files:
        raise ConfigError(f"{shown} names a key without a certificate: add cert=FILE")
    http = "https" if scheme == "etcds" else "http"
    return EtcdUrl(tuple(f"{http}://{_member(host, shown)}" for host in hosts.split(",")), shown, unquote(user), unquote(password), files)


def _member(text: str, shown: str) -> str:
    """Raises ConfigError."""
    has_port = text.rpartition(":")[2].isdigit() and not text.endswith("]")
    try:
        address = parse_address(text if has_port else f"{text}:{PORT}")
    except ConfigError as error:
        raise ConfigError(f"{shown}: {error}") from None
    return join_host_port(address.host.replace("%", "%25"), address.port)
