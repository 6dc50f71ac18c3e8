"""Frames over TCP: what a side's end means to the other one."""

from __future__ import annotations

import asyncio

import pytest

from shoal.transport import tcp
from shoal.transport.base import FrameStream
from shoal.wire.frame import Frame, FrameKind
from tests.support.route import turns


def test_an_abort_is_no_clean_end_over_tcp():
    """Over memory it is ConnectionError; over TCP the peer reads EOFError, as after close()."""

    async def scenario() -> None:
        async def handler(stream: FrameStream) -> None:
            await stream.receive()
            stream.abort()

        listener = await tcp.listen("127.0.0.1", 0, handler)
        left = await tcp.connect("127.0.0.1", listener.port, 5)
        await left.send(Frame(FrameKind.PING))
        try:
            with pytest.raises(ConnectionError):
                await left.receive()
        finally:
            left.abort()
            await listener.close()

    asyncio.run(asyncio.wait_for(scenario(), 5))


def test_what_a_handler_sent_arrives_though_it_returns_at_once():
    """`the stream is closed when it returns`: it is aborted, and what the kernel did not take yet is lost."""

    async def scenario() -> None:
        async def handler(stream: FrameStream) -> None:
            sending = asyncio.ensure_future(stream.send(Frame(FrameKind.ERROR, body=bytes(32 << 20))))
            await turns()
            sending.cancel()

        listener = await tcp.listen("127.0.0.1", 0, handler)
        left = await tcp.connect("127.0.0.1", listener.port, 5)
        left.trust()
        try:
            assert (await left.receive()).kind is FrameKind.ERROR
        finally:
            left.abort()
            await listener.close()

    asyncio.run(asyncio.wait_for(scenario(), 5))
