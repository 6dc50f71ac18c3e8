"""The API with files and batches in this process, its runner at work, on a clock that a test may turn."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from time import time
from typing import Any
from unittest import mock

import httpx2 as httpx

from shoal.config import ApiSettings
from shoal.gateway import app as application
from shoal.gateway.endpoints.batches.runner import Runner
from shoal.gateway.endpoints.batches.store import BatchStore
from shoal.gateway.engine import Engine
from shoal.gateway.engines import ServedEngines
from shoal.gateway.service import Service
from shoal.request import Request
from tests.support.app import alone
from tests.support.engine import FakeEngine, ScriptedStream, spoken
from tests.support.http import CHAT

ENDS = ("completed", "failed", "expired", "cancelled")


def line(id: str, url: str = CHAT, method: str = "POST", **body: Any) -> dict[str, Any]:
    return {"custom_id": id, "method": method, "url": url, "body": body or {"messages": [{"role": "user", "content": id}]}}


def jsonl(lines: Iterable[Any]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


class Clock:
    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time() + self.ahead


class Api:
    def __init__(self, http: httpx.AsyncClient, clock: Clock, service: Service) -> None:
        self.http, self.clock, self.service = http, clock, service

    async def upload(self, content: bytes, name: str = "in.jsonl", purpose: str = "batch") -> httpx.Response:
        return await self.http.post("/v1/files", data={"purpose": purpose}, files={"file": (name, content)})

    async def create(self, file: str, endpoint: str = CHAT, **fields: Any) -> httpx.Response:
        body = {"input_file_id": file, "endpoint": endpoint, "completion_window": "24h", **fields}
        return await self.http.post("/v1/batches", json=body)

    async def begin(self, lines: Iterable[Any], endpoint: str = CHAT) -> str:
        """The id of a batch of these lines."""
        uploaded = (await self.upload(jsonl(lines))).json()
        return str((await self.create(uploaded["id"], endpoint)).json()["id"])

    async def batch(self, id: str) -> dict[str, Any]:
        return dict((await self.http.get(f"/v1/batches/{id}")).json())

    async def until(self, id: str, what: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        async with asyncio.timeout(20):
            while not what(batch := await self.batch(id)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return batch

    async def ended(self, id: str) -> dict[str, Any]:
        return await self.until(id, lambda batch: batch["status"] in ENDS)

    async def results(self, file: str | None) -> dict[str, dict[str, Any]]:
        """custom_id → result; no custom_id comes twice."""
        if file is None:
            return {}
        content = (await self.http.get(f"/v1/files/{file}/content")).content
        found = [json.loads(row) for row in content.splitlines()]
        assert len({row["custom_id"] for row in found}) == len(found)
        return {row["custom_id"]: row for row in found}


@asynccontextmanager
async def served(
    engine: Engine | ServedEngines, data: Path, *, works: bool = True, clock: Clock | None = None, **settings: Any
) -> AsyncIterator[Api]:
    """works: whether batches are worked off."""
    clock = clock or Clock()
    quick = functools.partial(Runner, poll=0.005, now=clock)
    with (
        mock.patch.object(application, "Runner", quick),
        mock.patch.object(application, "BatchStore", functools.partial(BatchStore, now=clock)),
    ):
        app = application.create_app(
            engine if isinstance(engine, ServedEngines) else alone(engine), ApiSettings(data=str(data), **settings)
        )
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://shoal") as http:
            if not works:
                yield Api(http, clock, app.state.service)
                return
            async with app.router.lifespan_context(app):
                yield Api(http, clock, app.state.service)


def run(engine: FakeEngine, data: Path, what: Callable[[Api], Awaitable[None]], **options: Any) -> None:
    async def go() -> None:
        async with served(engine, data, **options) as api:
            await what(api)

    asyncio.run(go())


def echo(request: Request) -> list[Any]:
    return spoken(request, bytes(request.prompt).decode())


class Gated(FakeEngine):
    """Answers only prompts that a test lets through."""

    def __init__(self) -> None:
        super().__init__(echo)
        self.open: set[str] = set()

    def submit(self, request: Request) -> ScriptedStream:
        stream = super().submit(request)
        stream._hang = not any(word in bytes(request.prompt).decode() for word in self.open)
        if stream._hang:
            stream._items = []
        return stream

    def prompts(self) -> list[str]:
        return [bytes(stream.request.prompt).decode() for stream in self.streams]
