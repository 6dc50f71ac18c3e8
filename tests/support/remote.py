"""An engine behind a Unix socket, with workers in this process."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from shoal.config import ApiSettings
from shoal.gateway.auth.key import KeyId
from shoal.gateway.engine import Engine, Stream, TakenOver
from shoal.gateway.engines import ServedEngines
from shoal.gateway.workers.client import RemoteEngines
from shoal.gateway.workers.server import EngineServer
from shoal.text.tokenizer_parts import TokenizerFiles
from tests.support.app import alone
from tests.support.engine import FakeEngine
from tests.support.requests import read, text

MODEL = Path("/models/fake.gguf")
NOBODY = KeyId("")


def files(model: str) -> TokenizerFiles:
    return TokenizerFiles(MODEL.with_stem(model))


def one(worker: RemoteEngines) -> Engine:
    """The engine of its only model."""
    (engine,) = worker.all
    return engine


class Workers:
    """Workers of a head; `lost` are the processes whose conversations ended."""

    def __init__(self, engines: ServedEngines, folder: Path, settings: ApiSettings) -> None:
        self.lost: list[int] = []
        self.path = folder / "engine"
        self.engines = engines
        self.server = EngineServer(self.engines, files, settings, self.lost.append)
        self.opened: list[tuple[Path, bool]] = []
        self._running: dict[RemoteEngines, asyncio.Task[None]] = {}

    async def join(self) -> RemoteEngines:
        def opened(found: TokenizerFiles, trust_text: bool) -> Any:
            self.opened.append((found.model, trust_text))
            return next(engine for engine in self.engines.all if files(engine.name) == found).tokenizer

        worker = await RemoteEngines.connect(self.path, opened)
        self._running[worker] = asyncio.ensure_future(worker.run())
        return worker

    async def leave(self, worker: RemoteEngines) -> None:
        """As when its process is killed: whatever it wanted to say is lost."""
        worker._channel.abort()
        await self._running.pop(worker)

    async def end(self) -> None:
        for worker in self._running:
            await worker.close()
        await asyncio.gather(*self._running.values())
        await self.server.close()


@asynccontextmanager
async def workers(engine: FakeEngine, settings: ApiSettings | None = None) -> AsyncIterator[Workers]:
    with tempfile.TemporaryDirectory(prefix="shoal-") as folder:  # pytest's own folders are too long for a socket's name
        made = Workers(alone(engine), Path(folder), settings or ApiSettings())
        await made.server.start(made.path)
        try:
            async with asyncio.timeout(20):
                yield made
        finally:
            await made.end()


def run(fake: FakeEngine, work: Callable[[Workers], Awaitable[Any]], settings: ApiSettings | None = None) -> Any:
    async def go() -> Any:
        async with workers(fake, settings) as made:
            return await work(made)

    return asyncio.run(go())


async def some(stream: Stream, count: int) -> str:
    return text([await anext(stream) for _ in range(count)])


async def taken(stream: Stream) -> None:
    """Reads until another has it."""
    with pytest.raises(TakenOver):
        await read(stream)
