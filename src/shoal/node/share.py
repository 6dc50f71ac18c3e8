"""Hands out parts of model files over the tensor port, by hash: no name from the wire ever reaches the file system."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from shoal.errors import RemoteProtocolError
from shoal.models.ranges import GRAIN
from shoal.transport.base import FrameStream
from shoal.wire import messages
from shoal.wire.frame import Frame, FrameKind

FRAME = 1 << 20
"""Most bytes of a file in one frame."""
BUSY, ABSENT = "busy", "not here"
"""What a refusal says, for programs: try again later; ask another peer."""
_CONNECTIONS = 64  # each holds one frame in memory at most
_READS = 4  # at once, so that steps find the disk and the threads free
_PATIENCE = 30.0  # seconds that a peer may take to ask for the next part, or to receive a frame


class Share:
    """The files that this process offers to others. If it is not `open`, it offers none."""

    def __init__(self, open: bool = True) -> None:
        self.open = open
        self._files: dict[str, Path] = {}
        self._reading = asyncio.Semaphore(_READS)
        self._connections = 0

    @property
    def files(self) -> list[str]:
        """Hashes."""
        return list(self._files)

    def add(self, files: Mapping[str, Path]) -> None:
        """files: by hash."""
        if self.open:
            self._files.update(files)

    async def answer(self, stream: FrameStream, first: Frame) -> None:
        """Answers one peer until it hangs up. Then raises EOFError; TimeoutError, OSError, RemoteProtocolError; the stream is aborted."""
        if self._connections >= _CONNECTIONS:
            await _refuse(stream, BUSY)
            raise ConnectionError(f"{_CONNECTIONS} peers already fetch from here")
        self._connections += 1
        try:
            frame = first
            while True:
                await self._hand_out(stream, frame)
                async with asyncio.timeout(_PATIENCE):
                    frame = await stream.receive()
        except (TimeoutError, OSError):
            stream.abort()  # a peer that stopped reading must not keep what was to be sent
            raise
        finally:
            self._connections -= 1

    async def _hand_out(self, stream: FrameStream, frame: Frame) -> None:
        if frame.kind is not FrameKind.FETCH:
            raise RemoteProtocolError(f"a {frame.kind.name} frame where a request for a file was expected")
        asked = messages.decode_fetch(frame.meta)
        if not (0 <= asked.offset < 1 << 62 and 0 < asked.length <= GRAIN):
            await _refuse(stream, "no such range")
            raise RemoteProtocolError(f"{asked.length} bytes from {asked.offset} were requested; the limit is {GRAIN}")
        if (path := self._files.get(asked.sha256)) is None:
            return await _refuse(stream, ABSENT)
        end = asked.offset + asked.length
        for offset in range(asked.offset, end, FRAME):
            count = min(FRAME, end - offset)
            async with self._reading:
                body = await asyncio.to_thread(_read, path, offset, count)
            if len(body) != count:
                return await _refuse(stream, ABSENT)
            async with asyncio.timeout(_PATIENCE):
                await stream.send(Frame(FrameKind.FETCH, step=offset, body=body))
        return None


async def _refuse(stream: FrameStream, why: str) -> None:
    async with asyncio.timeout(_PATIENCE):
        await stream.send(Frame(FrameKind.ERROR, meta=messages.encode(messages.Error(why, -1))))


def _read(path: Path, offset: int, count: int) -> bytes:
    """Fewer bytes if the file is shorter or gone."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(count)
    except OSError:
        return b""
