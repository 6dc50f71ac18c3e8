"""Frames of the pairing conversation: a 9-byte header, then at most 4 KiB.

| offset | field |
|---|---|
| 0 | magic, `shoal` |
| 5 | version `u8` |
| 6 | kind `u8` |
| 7 | length of the payload, `u16` big-endian |
"""

from __future__ import annotations

import enum
import math
import struct

from shoal.errors import LocalProtocolError, PairingRefused, RemoteProtocolError, VersionMismatch
from shoal.security.refusal import Refusal, refused

VERSION = 1
LARGEST = 4096  # bytes of a payload; a request and its answer are under 1 KiB
_HEADER = struct.Struct("!5sBBH")
_MAGIC = b"shoal"
_REFUSED = struct.Struct("!BH")
HEADER_SIZE = _HEADER.size


class PairingKind(enum.IntEnum):
    HELLO = 1  # node: nameplate, its element
    CHALLENGE = 2  # head: its element, proof that it knows the code
    REQUEST = 3  # node: proof, sealed signing request
    GRANT = 4  # head: sealed certificate and authority
    REFUSED = 5  # head: reason, seconds to wait


def pack(kind: PairingKind, payload: bytes) -> bytes:
    if len(payload) > LARGEST:
        raise LocalProtocolError(f"a pairing message of {len(payload)} bytes; the limit is {LARGEST}")
    return _HEADER.pack(_MAGIC, VERSION, kind, len(payload)) + payload


def payload_size(header: bytes) -> int:
    """Bytes that follow the header. Raises RemoteProtocolError, VersionMismatch."""
    if len(header) != HEADER_SIZE:
        raise RemoteProtocolError("a pairing message was cut short")
    magic, version, _, size = _HEADER.unpack(header)
    if magic != _MAGIC:
        raise RemoteProtocolError("this is not a pairing message")
    if version != VERSION:
        raise VersionMismatch(version, VERSION)
    if size > LARGEST:
        raise RemoteProtocolError(f"a pairing message of {size} bytes; the limit is {LARGEST}")
    return int(size)


def unpack(frame: bytes, wanted: PairingKind) -> bytes:
    """The payload. Raises PairingRefused if the frame is a refusal, RemoteProtocolError for any other kind than `wanted`."""
    size = payload_size(frame[:HEADER_SIZE])
    kind, payload = frame[6], frame[HEADER_SIZE:]
    if len(payload) != size:
        raise RemoteProtocolError("a pairing message was cut short")
    if kind == PairingKind.REFUSED and wanted in (PairingKind.CHALLENGE, PairingKind.GRANT):
        raise _refusal(payload)
    if kind != wanted:
        raise RemoteProtocolError(f"a pairing message of kind {kind} where {wanted.name} was expected")
    return payload


def pack_refusal(error: PairingRefused) -> bytes:
    return pack(PairingKind.REFUSED, _REFUSED.pack(Refusal[error.reason.upper()], min(math.ceil(error.wait), 0xFFFF)))


def _refusal(payload: bytes) -> PairingRefused:
    try:
        reason, wait = _REFUSED.unpack(payload)
        return refused(Refusal(reason), wait)
    except (struct.error, ValueError):
        raise RemoteProtocolError("the head refused for a reason that this version does not know") from None
