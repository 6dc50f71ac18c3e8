"""Measures a link: round trips of small frames, then how fast larger ones are echoed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from statistics import median

from shoal.errors import RemoteProtocolError
from shoal.placement.profile import LinkSpeed
from shoal.transport.base import FrameStream
from shoal.wire.frame import GREETING, Frame, FrameKind

_TRIPS, _BULK = 15, 64
TIMEOUT = 10.0


async def answer(stream: FrameStream, first: Frame) -> None:
    """The measured side: acknowledges each ping until the other side hangs up. Then raises EOFError; TimeoutError if it falls silent."""
    frame = first
    while frame.kind is FrameKind.PING:
        await stream.send(Frame(FrameKind.ACK, step=frame.step))
        async with asyncio.timeout(TIMEOUT):
            frame = await stream.receive()
    raise RemoteProtocolError(f"a {frame.kind.name} frame during a measurement")


async def measure_link(stream: FrameStream, clock: Callable[[], float]) -> LinkSpeed:
    """clock: seconds. Closes the stream. Raises ConnectionError, EOFError, RemoteProtocolError."""
    try:
        trips: list[float] = []
        for step in range(_TRIPS):
            began = clock()
            await stream.send(Frame(FrameKind.PING, step=step))
            await stream.receive()
            trips.append(clock() - began)
        began = clock()
        for step in range(_BULK):
            await stream.send(Frame(FrameKind.PING, step=step, body=bytes(GREETING)))
        for _ in range(_BULK):
            await stream.receive()
        bulk = max(clock() - began, 1e-9)
    finally:
        await stream.close()
    return LinkSpeed(median(trips) / 2, _BULK * GREETING / bulk)
