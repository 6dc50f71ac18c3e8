"""A Redis URL, checked, and a form of it without its password for messages."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from shoal.errors import ConfigError

_OPTIONS = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}  # files; the other options of redis-py weaken TLS or fail late


@dataclass(frozen=True)
class RedisUrl:
    """url: with its secrets, only for the client; shown: without them, for messages; secrets: what no message may contain."""

    url: str
    shown: str
    secrets: tuple[str, ...]
    host: str
    port: int

    def __repr__(self) -> str:
        return f"RedisUrl({self.shown})"

    def told(self, error: BaseException) -> str:
        """An error in words. Servers and proxies echo commands that they do not know, including AUTH and its argument."""
        text = str(error) or type(error).__name__
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text


def parse(url: str) -> RedisUrl:
    """redis://[[USER]:PASSWORD@]HOST[:PORT][/DB], or rediss:// for TLS. Raises ConfigError, which never quotes the password."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # its message quotes parts of the URL
        raise ConfigError("the Redis URL cannot be read; write / : @ # ? in its password as %2F %3A %40 %23 %3F") from None
    if parts.scheme not in ("redis", "rediss"):
        raise ConfigError("a Redis URL starts with redis:// or rediss://")
    shown = _shown(parts)
    if not parts.hostname or port == 0:
        raise ConfigError(f"{shown} names no host; write redis://HOST:PORT/DB")
    if parts.fragment or not (parts.path in ("", "/") or (parts.path[1:].isdecimal() and parts.path.isascii())):
        raise ConfigError(f"{shown} must end in the number of a database; write / : @ # ? in a password as %2F %3A %40 %23 %3F")
    if unknown := parse_qs(parts.query, keep_blank_values=True).keys() - _OPTIONS:
        raise ConfigError(f"{shown} has {len(unknown)} unknown options; known are {', '.join(sorted(_OPTIONS))}")
    secrets = sorted({s for s in (parts.password, unquote(parts.password or "")) if s}, key=len, reverse=True)
    return RedisUrl(url=url, shown=shown, secrets=tuple(secrets), host=unquote(parts.hostname), port=port or 6379)


def _shown(parts: SplitResult) -> str:
    who = f"{parts.username or ''}:***@" if parts.password is not None else f"{parts.username}@" if parts.username else ""
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    database = parts.path if parts.path[1:].isdecimal() else ""
    return f"{parts.scheme}://{who}{host}{f':{parts.port}' if parts.port else ''}{database}"
