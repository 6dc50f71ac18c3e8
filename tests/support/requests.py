"""Requests to an engine, and what is read of its streams."""

from __future__ import annotations

from typing import Any

from shoal.gateway.engine import Engine, Stream
from shoal.request import Request, RequestId, SamplingParams, TokenChunk
from tests.support.engine import Item, spoken


def asked(name: str = "a-0", n: int = 1, tokens: int = 100, **sampling: Any) -> Request:
    return Request(RequestId(name), [72, 105], tokens, SamplingParams(**sampling), n)


async def begun(engine: Engine, *requests: Request, answer: str = "a", named: bool = False) -> list[Stream]:
    return [*await engine.begin(answer, b"note", requests, named)]


async def read(stream: Stream) -> list[TokenChunk]:
    return [chunk async for chunk in stream]


def text(chunks: list[TokenChunk], choice: int = 0) -> str:
    return bytes(c.token for c in chunks if c.choice == choice and c.token is not None).decode()


def hello(request: Request) -> list[Item]:
    return spoken(request, "Hello")[:3]
