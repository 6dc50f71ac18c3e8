"""One contract, over memory and over TCP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from shoal.errors import ConfigError, RemoteProtocolError
from shoal.transport import memory, tcp
from shoal.transport.base import FrameStream
from shoal.wire.frame import Frame, FrameKind

Ends = tuple[FrameStream, FrameStream]


@asynccontextmanager
async def over_memory() -> AsyncIterator[Ends]:
    left, right = memory.pair()
    yield left, right
    left.abort()


@asynccontextmanager
async def over_tcp() -> AsyncIterator[Ends]:
    arrived: asyncio.Future[FrameStream] = asyncio.get_running_loop().create_future()
    over = asyncio.Event()

    async def handler(stream: FrameStream) -> None:
        stream.trust()
        arrived.set_result(stream)
        await over.wait()

    listener = await tcp.listen("127.0.0.1", 0, handler)
    left = await tcp.connect("127.0.0.1", listener.port, 5)
    left.trust()
    try:
        yield left, await arrived
    finally:
        over.set()
        left.abort()
        await listener.close()


@pytest.fixture(params=[over_memory, over_tcp], ids=["memory", "tcp"])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[FrameStream, FrameStream], Awaitable[None]]], None]:
    """Runs a scenario with both ends of a connection. A scenario that hangs fails."""

    async def scenario_over(scenario: Callable[[FrameStream, FrameStream], Awaitable[None]]) -> None:
        async with asyncio.timeout(5), request.param() as (left, right):
            await scenario(left, right)

    return lambda scenario: asyncio.run(scenario_over(scenario))


async def turns(count: int = 20) -> None:
    """Lets other tasks run."""
    for _ in range(count):
        await asyncio.sleep(0)


def test_frames_arrive_whole_and_in_order(run):
    async def scenario(left: FrameStream, right: FrameStream) -> None:
        for i in range(8):
            await left.send(Frame(FrameKind.STEP, 1, i, b"m" * i, bytes([i]) * (i * 700)))
        got = [await right.receive() for _ in range(8)]
        assert [(f.step, len(f.meta), bytes(f.body)) for f in got] == [(i, i, bytes([i]) * (i * 700)) for i in range(8)]

    run(scenario)


def test_both_ways_at_once(run):
    async def scenario(left: FrameStream, right: FrameStream) -> None:
        await asyncio.gather(left.send(Frame(FrameKind.PING, step=1)), right.send(Frame(FrameKind.ACK, step=2)))
        first, second = await asyncio.gather(right.receive(), left.receive())
        assert (first.kind, second.kind) == (FrameKind.PING, FrameKind.ACK)

    run(scenario)


def test_a_large_body_arrives_unharmed(run):
    async def scenario(left: FrameStream, right: FrameStream) -> None:
        body = bytes(range(256)) * 8192
        sending = asyncio.ensure_future(left.send(Frame(FrameKind.STEP, body=body)))
        assert bytes((await right.receive()).body) == body
        await sending

    run(scenario)


def test_a_reader_waits_for_its_frame(run):
    async def scenario(left: FrameStream, right: FrameStream) -> None:
        reading = asyncio.ensure_future(right.receive())
        await turns()
        assert not reading.done()
        await left.send(Frame(FrameKind.PING))
        assert (await reading).kind is FrameKind.PING

    run(scenario)


def test_a_cancelled_reader_loses_nothing(run):
    async def scenario(left: FrameStream, right: FrameStream) -> None:
        reading = asyncio.ensure_future(right.receive())
        await turns()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await left.send(Frame(FrameKind.PING, step=7))
        assert (await right.receive()).step == 7

    run(scenario)


def test_what_was_sent_before_the_end_is_still_read(run):
    async def scenario(left: FrameStream, right: FrameStream) -> None:
        await left.send(Frame(FrameKind.BYE, step=3))
        await left.close()
        assert (await right.receive()).step == 3
        with pytest.raises(EOFError):
            await right.receive()
        with pytest.raises(EOFError):
            await right.receive()

    run(scenario)


def test_a_waiting_reader_hears_of_the_end(run):
    async def scenario(left: FrameStream, right: FrameStream) -> None:
        reading = asyncio.ensure_future(right.receive())
        await turns()
        left.abort()
        with pytest.raises((EOFError, ConnectionError)):
            await reading

    run(scenario)


def test_the_own_reader_hears_of_an_abort(run):
    async def scenario(left: FrameStream, right: FrameStream) -> None:
        reading = asyncio.ensure_future(left.receive())
        await turns()
        left.abort()
        with pytest.raises((EOFError, ConnectionError)):
            await reading

    run(scenario)


def test_nothing_can_be_sent_after_the_end(run):
    async def scenario(left: FrameStream, right: FrameStream) -> None:
        await left.close()
        with pytest.raises(ConnectionError):
            await left.send(Frame(FrameKind.PING))
        with pytest.raises((EOFError, ConnectionError)):
            await right.receive()
        with pytest.raises(ConnectionError):
            await right.send(Frame(FrameKind.PING))

    run(scenario)


def test_ending_twice_is_ending_once(run):
    async def scenario(left: FrameStream, right: FrameStream) -> None:
        await left.close()
        await left.close()
        left.abort()
        right.abort()
        right.abort()
        await right.close()

    run(scenario)


def test_a_sender_waits_for_a_slow_reader(run):
    async def scenario(left: FrameStream, right: FrameStream) -> None:
        sent = 0

        async def flood() -> None:
            nonlocal sent
            for i in range(60):
                await left.send(Frame(FrameKind.STEP, step=i, body=bytes(1 << 20)))
                sent = i + 1

        flooding = asyncio.ensure_future(flood())
        await turns(400)
        assert sent < 60
        for i in range(60):
            assert (await right.receive()).step == i
        await flooding

    run(scenario)


def test_a_waiting_sender_hears_of_the_end(run):
    async def scenario(left: FrameStream, right: FrameStream) -> None:
        async def flood() -> None:
            while True:
                await left.send(Frame(FrameKind.STEP, body=bytes(1 << 20)))

        flooding = asyncio.ensure_future(flood())
        await turns(100)
        right.abort()
        with pytest.raises(ConnectionError):
            await flooding

    run(scenario)


def test_arrival_is_noted(run):
    async def scenario(left: FrameStream, right: FrameStream) -> None:
        await left.send(Frame(FrameKind.PING))
        await right.receive()
        first = right.arrived
        await left.send(Frame(FrameKind.PING))
        await right.receive()
        assert 0 < first <= right.arrived

    run(scenario)


# TCP alone


def test_bytes_that_are_no_frames_end_the_stream():
    async def scenario() -> None:
        seen: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

        async def handler(stream: FrameStream) -> None:
            try:
                await stream.receive()
            except RemoteProtocolError as error:
                seen.set_result(error)

        listener = await tcp.listen("127.0.0.1", 0, handler)
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: shoal\r\n\r\n----")
        assert "magic" in str(await seen)
        assert await reader.read() == b""
        writer.close()
        await listener.close()

    asyncio.run(asyncio.wait_for(scenario(), 5))


def test_a_frame_that_is_cut_is_no_clean_end():
    async def scenario() -> None:
        seen: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

        async def handler(stream: FrameStream) -> None:
            try:
                await stream.receive()
            except ConnectionError as error:
                seen.set_result(error)

        listener = await tcp.listen("127.0.0.1", 0, handler)
        _, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(bytes(Frame(FrameKind.STEP, body=b"12345").buffers()[0])[:-1])
        writer.close()
        assert "inside a frame" in str(await seen)
        await listener.close()

    asyncio.run(asyncio.wait_for(scenario(), 5))


def test_a_port_in_use_is_said_plainly():
    async def scenario() -> None:
        async def handler(stream: FrameStream) -> None: ...

        listener = await tcp.listen("127.0.0.1", 0, handler)
        port = listener.port
        with pytest.raises(ConfigError, match="in use"):
            await tcp.listen("127.0.0.1", port, handler)
        await listener.close()
        with pytest.raises(ConnectionError, match="cannot reach"):
            await tcp.connect("127.0.0.1", port, 5)

    asyncio.run(asyncio.wait_for(scenario(), 5))


def test_closing_a_listener_ends_its_handlers():
    async def scenario() -> None:
        ended = asyncio.Event()

        async def handler(stream: FrameStream) -> None:
            try:
                await stream.receive()
            finally:
                ended.set()

        listener = await tcp.listen("127.0.0.1", 0, handler)
        left = await tcp.connect("127.0.0.1", listener.port, 5)
        await turns()
        await listener.close()
        assert ended.is_set()
        with pytest.raises((EOFError, ConnectionError)):
            await left.receive()
        await left.close()

    asyncio.run(asyncio.wait_for(scenario(), 5))


# Memory alone


def test_memory_reads_bytes_as_a_socket_would():
    async def scenario() -> None:
        left, _ = memory.pair()
        data = bytes(Frame(FrameKind.STEP, body=b"xyz").buffers()[0])
        for i in range(len(data)):
            left.feed(data[i : i + 1])
        assert bytes((await left.receive()).body) == b"xyz"
        left.feed(b"no frame at all, but thirty-two bytes long")
        with pytest.raises(RemoteProtocolError):
            await left.receive()

    asyncio.run(scenario())


def test_memory_knows_a_cut_frame():
    async def scenario() -> None:
        left, right = memory.pair()
        right.feed(bytes(Frame(FrameKind.STEP, body=b"xyz").buffers()[0])[:-1])
        await left.close()
        with pytest.raises(ConnectionError, match="inside a frame"):
            await right.receive()

    asyncio.run(scenario())
