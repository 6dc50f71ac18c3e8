"""An OpenAI-compatible server on loopback, over real sockets, that behaves as a test says, also badly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

CARD = {"id": "far", "object": "model", "created": 1, "owned_by": "somebody", "max_model_len": 777}


@dataclass
class Heard:
    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case."""
    raw: bytes
    connection: int = 0
    """The port from which it came."""
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when whoever asked is gone."""

    @property
    def body(self) -> dict[str, Any]:
        return json.loads(self.raw)


def chunk(text: str, **more: Any) -> bytes:
    data = {
        "id": "c1",
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}],
        **more,
    }
    return b"data: " + json.dumps(data).encode() + b"\n\n"


FINISH = b'data: {"id":"c1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"id":"c1","choices":[],"usage":{"prompt_tokens":11,"completion_tokens":3,"total_tokens":14}}\n\n'
DONE = b"data: [DONE]\n\n"
WHOLE = {
    "id": "c1",
    "object": "chat.completion",
    "model": "far",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "far away"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14},
    "an_unknown_field": {"kept": 1.0},
}


@dataclass
class Say:
    """What is sent for a request: a status, headers, and pieces, each in a write of its own. An event among them is waited for; None breaks
    the connection, and without it the answer ends as it should. hang: nothing is sent at all."""

    pieces: list[bytes | asyncio.Event | None] = field(default_factory=list[bytes | asyncio.Event | None])
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict[str, str])
    hang: bool = False


def streamed(*pieces: bytes | asyncio.Event | None) -> Say:
    return Say([*pieces], headers={"content-type": "text/event-stream", "x-request-id": "theirs"})


def said(body: Any, status: int = 200, **headers: str) -> Say:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Say([raw], status, {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}})


def ordinary(heard: Heard) -> Say:
    """A server that is well."""
    if heard.body.get("stream"):
        usage = [USAGE] if (heard.body.get("stream_options") or {}).get("include_usage") else []
        return streamed(chunk("far "), chunk("away"), FINISH, *usage, DONE)
    return said(WHOLE, x_request_id="theirs")


@dataclass
class FakeUpstream:
    """models: the cards that it lists; a Say: what it says instead."""

    models: Any = field(default_factory=lambda: [CARD])
    answer: Callable[[Heard], Say] = ordinary
    heard: list[Heard] = field(default_factory=list[Heard])
    """Without the questions for its models."""
    looks: list[Heard] = field(default_factory=list[Heard])
    """Those."""
    port: int = 0
    _server: asyncio.Server | None = None
    _open: set[asyncio.StreamWriter] = field(default_factory=set[asyncio.StreamWriter])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def start(self) -> None:
        """At the same port as before, if it was stopped."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """As if it were killed: connections end as they are."""
        if self._server is not None:
            self._server.close()
            for writer in [*self._open]:
                writer.transport.abort()
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while True:
                await self._one(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self._open.discard(writer)
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split()
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:] if line)}
        heard = Heard(
            method, path, headers, await reader.readexactly(int(headers.get("content-length", 0))), writer.get_extra_info("peername")[1]
        )
        if method == "GET":
            self.looks.append(heard)
            await _send(writer, self.models if isinstance(self.models, Say) else said({"object": "list", "data": self.models}), heard)
            return
        self.heard.append(heard)
        sending = asyncio.ensure_future(_send(writer, self.answer(heard), heard))
        leaving = asyncio.ensure_future(_left(reader, heard))
        await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        done = sending.done()
        for task in (sending, leaving):
            task.cancel()
        await asyncio.gather(sending, leaving, return_exceptions=True)
        if not done or isinstance(sending.exception(), ConnectionError):
            raise ConnectionResetError


async def _left(reader: asyncio.StreamReader, heard: Heard) -> None:
    while not reader.at_eof():  # noqa: ASYNC110 - nothing is to be read
        await asyncio.sleep(0.005)
    heard.left.set()


async def _send(writer: asyncio.StreamWriter, say: Say, heard: Heard) -> None:
    if say.hang:
        await asyncio.Event().wait()
    head = [f"HTTP/1.1 {say.status} X", "transfer-encoding: chunked", *(f"{name}: {value}" for name, value in say.headers.items()), "", ""]
    writer.write("\r\n".join(head).encode())
    for piece in say.pieces:
        if piece is None:
            await writer.drain()
            await asyncio.sleep(0.02)  # what was said arrives
            raise ConnectionResetError
        if isinstance(piece, asyncio.Event):
            await piece.wait()
        else:
            writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0)
    writer.write(b"0\r\n\r\n")
    await writer.drain()


@asynccontextmanager
async def fake_upstream(answer: Callable[[Heard], Say] = ordinary, models: Any = None) -> AsyncGenerator[FakeUpstream]:
    made = FakeUpstream(answer=answer, **({} if models is None else {"models": models}))
    await made.start()
    try:
        yield made
    finally:
        await made.stop()
