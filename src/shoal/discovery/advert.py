"""A cluster's announcement to anyone who looks for one: a few TXT records, or one JSON object.

Both come from strangers. What is read is checked as a whole, and refused with the reason; unknown keys are ignored, so that a
newer shoal can add some.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from shoal.address import is_host, is_wildcard, join_host_port
from shoal.errors import ConfigError, LocalProtocolError, RemoteProtocolError

MAX_ENTRY = 255  # bytes of a TXT entry, key and all: RFC 6763, section 6.1
MAX_JSON = 4096  # bytes
MAX_WORDS = 180  # bytes of model and state, UTF-8
MAX_VERSION = 64
MAX_NODES = 65535

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,46}[A-Za-z0-9])?")  # fits a DNS label with a suffix, and a Redis key
_TXT_NUMBER = re.compile(r"[0-9]{1,5}")
_TXT_KEYS = {"cluster", "pairing", "model", "state", "nodes", "version", "secure"}


class Advert(msgspec.Struct, frozen=True):
    """A cluster and where its head is.

    cluster:      its name: letters, digits, - and _, at most 48
    host:         address or host name at which nodes reach the head. The announcer may give 0.0.0.0 or ::, every address of
                  its machine; an advert that was found never has those
    control_port: TCP port at which nodes join
    pairing_port: TCP port that hands out certificates; 0: none
    model, state: words for people, one printable line each of at most MAX_WORDS bytes; see `words`
    nodes:        how many have joined
    version:      of shoal, at the head
    secure:       whether joining requires a certificate

    Raises LocalProtocolError for a value outside these limits.
    """

    cluster: str
    host: str
    control_port: int
    pairing_port: int = 0
    model: str = ""
    state: str = ""
    nodes: int = 0
    version: str = ""
    secure: bool = False

    def __post_init__(self) -> None:
        if fault := _fault(self):
            raise LocalProtocolError(f"an advert cannot hold this: {fault}")

    @property
    def address(self) -> str:
        """host:port of the control port, in the form that `shoal join` takes."""
        return join_host_port(self.host, self.control_port)

    @property
    def anywhere(self) -> bool:
        """Whether the head listens on every address of its machine."""
        return is_wildcard(self.host)

    def at(self, host: str) -> Advert:
        """The same advert at another address. Raises LocalProtocolError."""
        return msgspec.structs.replace(self, host=host)

    def to_txt(self) -> dict[str, str]:
        """TXT records, each at most MAX_ENTRY bytes with its key; host and control port travel as A, AAAA and SRV records."""
        return {
            "cluster": self.cluster,
            "pairing": str(self.pairing_port),
            "model": self.model,
            "state": self.state,
            "nodes": str(self.nodes),
            "version": self.version,
            "secure": "1" if self.secure else "0",
        }

    @staticmethod
    def from_txt(records: Mapping[bytes, bytes | None], host: str, control_port: int) -> Advert:
        """The reverse; keys are read without regard to case (RFC 6763, section 6.4). Raises RemoteProtocolError."""
        values: dict[str, str] = {}
        try:
            for raw, value in records.items():
                if (key := raw.lower().decode("ascii", "replace")) in _TXT_KEYS:
                    values.setdefault(key, (value or b"").decode())
            return _found(
                Advert(
                    cluster=values.get("cluster", ""),
                    host=host,
                    control_port=control_port,
                    pairing_port=_number(values, "pairing"),
                    model=values.get("model", ""),
                    state=values.get("state", ""),
                    nodes=_number(values, "nodes"),
                    version=values.get("version", ""),
                    secure=_flag(values, "secure"),
                )
            )
        except UnicodeDecodeError as error:
            raise RemoteProtocolError(f"an advert that is not UTF-8: {error.reason}") from error
        except LocalProtocolError as error:
            raise RemoteProtocolError(str(error)) from error

    def to_json(self) -> bytes:
        """At most MAX_JSON bytes, UTF-8."""
        return msgspec.json.encode(self)

    @staticmethod
    def from_json(data: bytes) -> Advert:
        """The reverse. Raises RemoteProtocolError."""
        if len(data) > MAX_JSON:
            raise RemoteProtocolError(f"an advert of more than {MAX_JSON} bytes")
        try:
            return _found(msgspec.json.decode(data, type=Advert))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RemoteProtocolError(f"not an advert: {error}") from error
        except LocalProtocolError as error:
            raise RemoteProtocolError(str(error)) from error


def check_name(name: str) -> str:
    """The name of a cluster, unchanged. Raises ConfigError."""
    if _NAME.fullmatch(name) is None:
        raise ConfigError(
            f"{name[:60]!r} cannot be a cluster's name; use at most 48 letters, digits, - and _, with no - or _ at either end"
        )
    return name


def words(text: str, most: int = MAX_WORDS) -> str:
    """Text in the form that an advert allows: one printable line of at most `most` bytes (3 or more), cut with an ellipsis."""
    line = "".join(c if c.isprintable() else " " for c in text[: 4 * most])
    line = " ".join(line.split())
    if len(line.encode()) <= most:
        return line
    return line.encode()[: most - 3].decode(errors="ignore") + "…"


def _found(advert: Advert) -> Advert:
    """Checks a received advert. Raises RemoteProtocolError."""
    if advert.anywhere:
        raise RemoteProtocolError(f"an advert with the address {advert.host}, which nothing can be reached at")
    return advert


def _number(values: Mapping[str, str], key: str) -> int:
    text = values.get(key, "0")
    if _TXT_NUMBER.fullmatch(text) is None:
        raise RemoteProtocolError(f"an advert whose {key} is not a number: {text[:20]!r}")
    return int(text)


def _flag(values: Mapping[str, str], key: str) -> bool:
    text = values.get(key, "0")
    if text not in ("0", "1"):
        raise RemoteProtocolError(f"an advert whose {key} is neither 0 nor 1: {text[:20]!r}")
    return text == "1"


def _fault(advert: Advert) -> str | None:
    """What is wrong with the values, if anything."""
    if _NAME.fullmatch(advert.cluster) is None:
        return f"cluster {advert.cluster[:60]!r}"
    if not is_host(advert.host):
        return f"host {advert.host[:60]!r}"
    for name, number, low, high in (
        ("control port", advert.control_port, 1, 65535),
        ("pairing port", advert.pairing_port, 0, 65535),
        ("nodes", advert.nodes, 0, MAX_NODES),
    ):
        if not low <= number <= high:
            return f"{name} {number}, which must lie in {low} to {high}"
    for name, text, most in (
        ("model", advert.model, MAX_WORDS),
        ("state", advert.state, MAX_WORDS),
        ("version", advert.version, MAX_VERSION),
    ):
        if not text.isprintable():  # terminals obey control characters
            return f"{name} {text[:60]!r}, which is not printable"
        if len(text.encode()) > most:
            return f"a {name} of more than {most} bytes"
    return None
