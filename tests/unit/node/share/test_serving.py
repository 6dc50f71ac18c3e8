"""What a node hands out of its model files, over memory and TCP."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shoal.errors import RemoteProtocolError
from shoal.models.ranges import GRAIN
from shoal.node import share
from shoal.node.share import ABSENT, BUSY, FRAME, Share
from shoal.transport import memory, tcp
from shoal.transport.base import FrameStream
from shoal.wire import messages
from shoal.wire.frame import Frame, FrameKind
from tests.support.http import eventually
from tests.support.share import CONTENT, HASH, played, serve


@asynccontextmanager
async def over_memory(files: Share, ends: list[Exception]) -> AsyncIterator[FrameStream]:
    left, right = memory.pair()

    async def hand_out() -> None:
        await serve(right, files, ends)
        await right.close()

    serving = asyncio.ensure_future(hand_out())
    yield left
    await left.close()
    await serving


@asynccontextmanager
async def over_tcp(files: Share, ends: list[Exception]) -> AsyncIterator[FrameStream]:
    listener = await tcp.listen("127.0.0.1", 0, lambda stream: serve(stream, files, ends))
    left = await tcp.connect("127.0.0.1", listener.port, 5)
    left.trust(FRAME)
    yield left
    await left.close()
    await eventually(lambda: bool(ends))
    await listener.close()


Play = Callable[[Callable[[FrameStream], Awaitable[None]]], Exception]


@pytest.fixture(params=[over_memory, over_tcp], ids=["memory", "tcp"])
def play(request: pytest.FixtureRequest, model: Path) -> Play:
    """Plays a client against a share of the model; how that ended for the share."""

    async def against(client: Callable[[FrameStream], Awaitable[None]]) -> Exception:
        files, ends = Share(), list[Exception]()
        files.add({HASH: model})
        async with request.param(files, ends) as stream:
            await client(stream)
        (end,) = ends
        return end

    return lambda client: played(against(client))


async def ask(stream: FrameStream, sha256: Any, offset: Any, length: Any) -> None:
    await stream.send(Frame(FrameKind.FETCH, meta=msgspec.msgpack.encode([sha256, offset, length])))


async def refusal(stream: FrameStream) -> str:
    frame = await stream.receive()
    assert frame.kind is FrameKind.ERROR
    return messages.decode_error(frame.meta).message


@pytest.mark.parametrize("asked", [range(1), range(5, 5 + FRAME), range(GRAIN), range(len(CONTENT) - FRAME - 1, len(CONTENT))])
def test_a_range_comes_in_frames(play: Play, asked: range):
    async def client(stream: FrameStream) -> None:
        for _ in range(2):
            await ask(stream, HASH, asked.start, len(asked))
            got = b""
            while len(got) < len(asked):
                frame = await stream.receive()
                assert (frame.kind, frame.step) == (FrameKind.FETCH, asked.start + len(got))
                assert 0 < len(frame.body) <= FRAME
                got += bytes(frame.body)
            assert got == CONTENT[asked.start : asked.stop]

    assert isinstance(play(client), EOFError)


@pytest.mark.parametrize(
    "name",
    ["a" * 64, "", "a model.gguf", "../there/a model.gguf", "/etc/passwd", "../../../../etc/passwd", HASH.upper(), HASH + "\0", HASH[:-1]],
)
def test_nothing_but_a_known_hash_finds_a_file(play: Play, name: str):
    async def client(stream: FrameStream) -> None:
        await ask(stream, name, 0, 1)
        assert await refusal(stream) == ABSENT

    assert isinstance(play(client), EOFError)


@pytest.mark.parametrize("offset", [len(CONTENT), len(CONTENT) - 1, 1 << 61])
def test_what_lies_beyond_the_end_is_not_here(play: Play, offset: int):
    async def client(stream: FrameStream) -> None:
        await ask(stream, HASH, offset, 2)
        assert await refusal(stream) == ABSENT

    assert isinstance(play(client), EOFError)


@pytest.mark.parametrize(("offset", "length"), [(0, 0), (0, -1), (-1, 5), (0, GRAIN + 1), (0, 1 << 60), (1 << 63, 1)])
def test_ranges_that_are_refused(play: Play, offset: int, length: int):
    async def client(stream: FrameStream) -> None:
        await ask(stream, HASH, offset, length)
        assert await refusal(stream) == "no such range"

    assert isinstance(play(client), RemoteProtocolError)


@pytest.mark.parametrize(
    "meta", [b"", b"\xc1", msgspec.msgpack.encode([HASH, "0", 1]), msgspec.msgpack.encode([HASH, 0]), bytes(9000)], ids=range(5)
)
def test_requests_that_are_none(play: Play, meta: bytes):
    async def client(stream: FrameStream) -> None:
        await stream.send(Frame(FrameKind.FETCH, meta=meta))
        with contextlib.suppress(EOFError, ConnectionError):
            await stream.receive()

    assert isinstance(play(client), RemoteProtocolError)


def test_a_stage_is_not_entered_by_this_door(play: Play):
    async def client(stream: FrameStream) -> None:
        await ask(stream, HASH, 0, 1)
        await stream.receive()
        await stream.send(Frame(FrameKind.STEP))
        with contextlib.suppress(EOFError, ConnectionError):
            await stream.receive()

    assert isinstance(play(client), RemoteProtocolError)


def test_a_file_that_was_deleted_is_not_here(play: Play, model: Path):
    model.unlink()

    async def client(stream: FrameStream) -> None:
        await ask(stream, HASH, 0, 1)
        assert await refusal(stream) == ABSENT

    assert isinstance(play(client), EOFError)


def test_too_many_are_sent_away(play: Play, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(share, "_CONNECTIONS", 0)

    async def client(stream: FrameStream) -> None:
        await ask(stream, HASH, 0, 1)
        assert await refusal(stream) == BUSY

    assert isinstance(play(client), ConnectionError)


def test_who_does_not_read_is_given_up(play: Play, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(share, "_PATIENCE", 0.05)

    async def client(stream: FrameStream) -> None:
        with contextlib.suppress(EOFError, ConnectionError):
            for _ in range(64):
                await ask(stream, HASH, 0, GRAIN)
            await asyncio.sleep(0.2)

    assert isinstance(play(client), TimeoutError | EOFError | ConnectionError)


def test_a_closed_share_has_nothing(model: Path):
    files = Share(open=False)
    files.add({HASH: model})
    assert files.files == []
