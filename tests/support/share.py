"""A model file of three ranges between nodes: peers that hold it, well or ill, and orders to fetch it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from shoal.control import messages as control
from shoal.errors import ProtocolError
from shoal.models.manifest import Manifest, ModelFile
from shoal.models.ranges import GRAIN
from shoal.node.links import greeted
from shoal.node.share import FRAME, Share
from shoal.transport import tcp
from shoal.transport.base import FrameStream
from shoal.wire import messages
from shoal.wire.frame import Frame, FrameKind

CONTENT = Random(1).randbytes(5 * GRAIN // 2 + 7)
"""Three ranges."""
HASH = hashlib.sha256(CONTENT).hexdigest()
FILE = ModelFile("model.gguf", len(CONTENT), HASH)
REFERENCE = "/not/here/model.gguf"


def played(scenario: Coroutine[Any, Any, Any]) -> Any:
    """One that hangs fails."""

    async def bounded() -> Any:
        async with asyncio.timeout(30):
            return await scenario

    return asyncio.run(bounded())


def noted(cache: Path) -> Any:
    """Which ranges of an interrupted fetch are here."""
    notes = list(cache.glob("parts/*.ranges"))
    return msgspec.json.decode(notes[0].read_bytes()) if notes else []


async def serve(stream: FrameStream, files: Share, ends: list[Exception]) -> None:
    try:
        await greeted(stream, files)
    except (EOFError, OSError, ProtocolError) as error:
        ends.append(error)


class Holder:
    """A peer with the model. `asked`: what was asked of it."""

    def __init__(self, listener: tcp.TcpListener, asked: list[range]) -> None:
        self.port, self.asked, self._listener = listener.port, asked, listener

    def peer(self, *files: int) -> control.Peer:
        return control.Peer(host="127.0.0.1", port=self.port, files=list(files) or [0])


Hand = Callable[[FrameStream, messages.Fetch, list[range]], Awaitable[None]]
"""Answers one request."""


async def well(stream: FrameStream, asked: messages.Fetch, before: list[range], content: bytes = CONTENT) -> None:
    for at in range(asked.offset, asked.offset + asked.length, FRAME):
        await stream.send(Frame(FrameKind.FETCH, step=at, body=content[at : min(at + FRAME, asked.offset + asked.length)]))


async def forging(stream: FrameStream, asked: messages.Fetch, before: list[range]) -> None:
    await well(stream, asked, before, bytes(len(CONTENT)))


async def dying(stream: FrameStream, asked: messages.Fetch, before: list[range]) -> None:
    """Brings one range, dies within the next."""
    await stream.send(Frame(FrameKind.FETCH, step=asked.offset, body=CONTENT[asked.offset : asked.offset + 5]))
    raise ConnectionError("dies")


async def dying_later(stream: FrameStream, asked: messages.Fetch, before: list[range]) -> None:
    await (well if len(before) < 2 else dying)(stream, asked, before)


def instead(*frames: Frame) -> Hand:
    async def hand(stream: FrameStream, asked: messages.Fetch, before: list[range]) -> None:
        for frame in frames:
            await stream.send(frame)

    return hand


@asynccontextmanager
async def holding(hand: Hand = well) -> AsyncIterator[Holder]:
    asked: list[range] = []

    async def handler(stream: FrameStream) -> None:
        try:
            while True:
                request = messages.decode_fetch((await stream.receive()).meta)
                asked.append(range(request.offset, request.offset + request.length))
                await hand(stream, request, asked)
        except (EOFError, OSError):
            stream.abort()

    listener = await tcp.listen("127.0.0.1", 0, handler)
    try:
        yield Holder(listener, asked)
    finally:
        await listener.close()


def order(*peers: control.Peer, reference: str = REFERENCE, files: tuple[ModelFile, ...] = (FILE,)) -> control.Load:
    listed = [control.ModelFile(name=f.name, size=f.size, sha256=f.sha256) for f in files]
    return control.Load(model=reference, first_layer=0, end_layer=4, layers=4, files=listed, peers=list(peers))


def brought(cache: Path) -> bytes | None:
    path = Manifest(REFERENCE, (FILE,)).located(range(4), True, True, cache)
    assert path is None or path.is_relative_to(cache)
    return None if path is None else path.read_bytes()


def left(cache: Path) -> list[str]:
    """What lies about besides locks."""
    return [p.name for p in (cache / "parts").iterdir() if p.suffix != ".lock"]
