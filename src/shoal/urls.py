"""URLs that settings name: where traces go, other servers, receivers of webhooks."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import SplitResult, urlsplit

from shoal.address import parse_host
from shoal.errors import ConfigError


def check_receiver(url: str) -> None:
    """Of traces. Raises ConfigError."""
    how = "write http://HOST:4318 or grpc://HOST:4317, https or grpcs with TLS, or env"
    instead = "OTEL_EXPORTER_OTLP_HEADERS may hold a header with one"
    parts = _checked("--traces", url, "no place for traces", how, instead, ("http", "https", "grpc", "grpcs"))
    if parts.query or (parts.path.strip("/") and parts.scheme.startswith("grpc")):
        raise ConfigError(f"--traces {url} says more than a host and a port; {how}")


def parse_upstream(text: str) -> str:
    """The base URL of an OpenAI-compatible server: 'http://other:8000/' → 'http://other:8000/v1'. Raises ConfigError."""
    how = "write one like http://192.168.1.21:8000/v1"
    instead = f"put the server's key into --upstream-key-file, and {how}"
    parts = _checked("--upstream", text, "not the URL of a server", how, instead)
    if parts.query:
        raise ConfigError(f"--upstream {text[:200]} has more than a host, a port and a path; {how}")
    return f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/') or '/v1'}"


def check_webhook(url: str) -> None:
    """Raises ConfigError. The message has no more of it than its host: the rest may hold a token."""
    how = "write https://HOST/PATH, or http://HOST/PATH where nobody else listens"
    _checked("--webhook", url, "no place for webhooks", how, "the receiver knows the sender by the signature", secret=True)


def _checked(
    flag: str, url: str, isnt: str, how: str, instead: str, schemes: Collection[str] = ("http", "https"), *, secret: bool = False
) -> SplitResult:
    """A URL with a host that may be connected to, without a user, a password and a fragment. Raises ConfigError, which never repeats a password.

    isnt: what a wrong one is. how: to write it. instead: of a password. secret: whether the rest of it may hold a secret, too.
    """
    told = f"{flag} is {isnt}" if secret or "@" in url or not url.isprintable() else f"{flag} {url[:200]} is {isnt}"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:  # a port that is none, or a bracket too few
        raise ConfigError(f"{told}; {how}" if "@" in url else f"{told}: {error}; {how}") from None
    if "@" in parts.netloc:
        raise ConfigError(f"{flag} takes no password; {instead}")
    if parts.scheme not in schemes or not host or port == 0 or parts.fragment:
        raise ConfigError(f"{told}; {how}")
    try:
        parse_host(host)
    except ConfigError as error:
        raise ConfigError(f"{told}: {error}; {how}") from None
    if " " in url or not url.isascii() or not url.isprintable():
        raise ConfigError(f"{told}; {how}")
    return parts
