"""The first line in each direction between a gateway and the head. It stays as it is in every version, so that two that differ
can say so."""

from __future__ import annotations

import asyncio

from shoal.errors import ConfigError, RemoteProtocolError, VersionMismatch

_GATEWAY, _WELCOME, _REFUSED = "shoal gateway ", "welcome ", "refused "
_LONGEST = 512  # bytes of a line
_PATIENCE = 10.0  # seconds


async def _line(reader: asyncio.StreamReader) -> str:
    """Raises EOFError, OSError (TimeoutError is one), RemoteProtocolError."""
    try:
        async with asyncio.timeout(_PATIENCE):
            line = await reader.readuntil(b"\n")
    except asyncio.LimitOverrunError:
        line = b""
    if not 0 < len(line) <= _LONGEST:
        raise RemoteProtocolError("what is there is no gateway port of shoal")
    return line.decode(errors="replace").rstrip("\n")


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, version: str) -> None:
    """The gateway's side. Raises VersionMismatch, ConfigError with the head's reason, RemoteProtocolError, EOFError, OSError."""
    writer.write(f"{_GATEWAY}{version}\n".encode())
    said = await _line(reader)
    if said.startswith(_REFUSED):
        raise ConfigError(said.removeprefix(_REFUSED))
    if not said.startswith(_WELCOME):
        raise RemoteProtocolError("what is there is no gateway port of shoal")
    if (theirs := said.removeprefix(_WELCOME)) != version:
        raise VersionMismatch(theirs, version)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, version: str, refusal: str = "") -> None:
    """The head's side. refusal: why this gateway is not taken, whatever it says. Raises RemoteProtocolError if it is not taken,
    EOFError, OSError."""
    said = await _line(reader)
    if not said.startswith(_GATEWAY):
        raise RemoteProtocolError("it did not say that it is a gateway")
    if refusal:
        writer.write(f"{_REFUSED}{refusal}\n".encode())
        raise RemoteProtocolError(refusal)
    writer.write(f"{_WELCOME}{version}\n".encode())
    if (theirs := said.removeprefix(_GATEWAY)) != version:
        raise VersionMismatch(theirs, version)
