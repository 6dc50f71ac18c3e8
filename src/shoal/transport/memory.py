"""Frames inside one process, through the same encoder and decoder as over TCP."""

from __future__ import annotations

import asyncio
from collections import deque
from time import perf_counter

from shoal.errors import RemoteProtocolError
from shoal.wire.frame import Frame, FrameDecoder

_READ_AHEAD = 16


class MemoryStream:
    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.arrived = 0.0
        self._other: MemoryStream | None = None
        self._decoder = FrameDecoder()
        self._frames: deque[Frame] = deque()
        self._failure: Exception | None = None
        self._changed = asyncio.Event()
        self._closed = False

    async def send(self, frame: Frame) -> None:
        other = self._write(frame)
        while len(other._frames) > _READ_AHEAD and not self._closed and not other._closed:
            other._changed.clear()
            await other._changed.wait()

    def offer(self, frame: Frame) -> bool:
        if self._other is not None and len(self._other._frames) > _READ_AHEAD:
            return False
        self._write(frame)
        return True

    def _write(self, frame: Frame) -> MemoryStream:
        buffers = frame.buffers()
        other = self._other
        if other is None or self._closed or other._closed:
            raise ConnectionError(f"the connection to {self.peer} is closed")
        for buffer in buffers:
            other.feed(bytes(buffer))
        return other

    def feed(self, data: bytes) -> None:
        """Takes bytes as they would come from a socket."""
        at = 0
        try:
            while at < len(data):
                room = self._decoder.get_buffer()
                count = min(len(room), len(data) - at)
                room[:count] = data[at : at + count]
                room.release()
                self._frames.extend(self._decoder.received(count))
                at += count
        except RemoteProtocolError as error:
            self._fail(error)
        self._changed.set()

    async def receive(self) -> Frame:
        while not self._frames:
            if self._failure is not None:
                raise self._failure
            self._changed.clear()
            await self._changed.wait()
        self._changed.set()
        self.arrived = perf_counter()
        return self._frames.popleft()

    def trust(self, body: int | None = None) -> None:
        """Does nothing: both ends are this process."""

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._fail(EOFError("the connection is closed"))
        if self._other is not None:
            cut = self._other._decoder.mid_frame
            self._other._fail(
                ConnectionError("the peer ended the connection inside a frame") if cut else EOFError("the peer ended the connection")
            )

    def abort(self) -> None:
        self._closed = True
        self._fail(EOFError("the connection is closed"))
        if self._other is not None:
            self._other._fail(ConnectionError("the connection broke"))

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = error
        self._changed.set()


def pair() -> tuple[MemoryStream, MemoryStream]:
    """Two ends of one connection."""
    left, right = MemoryStream("memory:right"), MemoryStream("memory:left")
    left._other, right._other = right, left  # pyright: ignore[reportPrivateUsage]
    return left, right
