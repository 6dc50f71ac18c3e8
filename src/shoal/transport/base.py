"""The contract of a connection that carries frames."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from shoal.wire.frame import Frame


class FrameStream(Protocol):
    """Frames arrive whole, once and in order, or the stream ends."""

    @property
    def peer(self) -> str:
        """The other end, for people."""
        ...

    @property
    def arrived(self) -> float:
        """When the last received frame had arrived, by time.perf_counter()."""
        ...

    async def send(self, frame: Frame) -> None:
        """Hands a frame over; waits while the peer accepts no more. Raises ConnectionError once the stream has ended."""
        ...

    def offer(self, frame: Frame) -> bool:
        """Hands a frame over if that takes no waiting: otherwise it is not sent. Raises ConnectionError once the stream has ended."""
        ...

    async def receive(self) -> Frame:
        """The next frame. Raises EOFError at a clean end, ConnectionError at a broken one, RemoteProtocolError for invalid bytes."""
        ...

    def trust(self, body: int | None = None) -> None:
        """The peer has introduced itself: frames may now be as large as the protocol allows; with `body`, only bodies may grow,
        up to that many bytes."""
        ...

    async def close(self) -> None:
        """Sends what was handed over, then ends the stream; later calls do nothing."""
        ...

    def abort(self) -> None:
        """Ends the stream at once."""
        ...


Handler = Callable[[FrameStream], Awaitable[None]]
"""Serves one accepted stream, which is closed when it returns."""
