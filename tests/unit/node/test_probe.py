"""Links are measured over the tensor port, and the measured side takes nothing else for a measurement."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter

import pytest

from shoal.errors import ProtocolError, RemoteProtocolError
from shoal.node.probe import answer, measure_link
from shoal.transport import tcp
from shoal.transport.base import FrameStream
from shoal.wire.frame import Frame, FrameKind


def against(side: Callable[[int], Awaitable[object]]) -> list[Exception]:
    """Plays a client against the measured side; how that side's conversations ended."""
    ends: list[Exception] = []

    async def measured(stream: FrameStream) -> None:
        try:
            await answer(stream, await stream.receive())
        except (EOFError, ProtocolError) as error:
            ends.append(error)

    async def play() -> None:
        listener = await tcp.listen("127.0.0.1", 0, measured)
        try:
            async with asyncio.timeout(20):
                await side(listener.port)
                while not ends:  # noqa: ASYNC110 - the other side ends when it has read the end
                    await asyncio.sleep(0)
        finally:
            await listener.close()

    asyncio.run(play())
    return ends


def test_a_link_has_a_delay_and_a_bandwidth():
    measured = []

    async def side(port: int) -> None:
        measured.append(await measure_link(await tcp.connect("127.0.0.1", port, 5), perf_counter))

    (end,) = against(side)
    assert isinstance(end, EOFError)
    assert measured[0].seconds > 0
    assert measured[0].bytes_per_second > 0


def test_another_frame_ends_a_measurement():
    async def side(port: int) -> None:
        stream = await tcp.connect("127.0.0.1", port, 5)
        await stream.send(Frame(FrameKind.PING))
        await stream.receive()
        await stream.send(Frame(FrameKind.STEP))
        with pytest.raises((EOFError, ConnectionError)):
            await stream.receive()

    (end,) = against(side)
    assert isinstance(end, RemoteProtocolError)
