"""A gateway on a real socket in this process, whose upstreams are those of a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2 as httpx
import uvloop

from shoal.config import ApiSettings
from shoal.gateway.app import create_app
from shoal.gateway.engines import ServedEngines
from shoal.gateway.server import ApiServer, listening
from shoal.gateway.service import Service
from shoal.gateway.upstream.upstreams import Upstreams
from tests.support.engine import FakeEngine
from tests.support.fake_upstream import FakeUpstream
from tests.support.http import eventually

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]


@dataclass
class Gateway:
    http: httpx.AsyncClient
    engine: FakeEngine
    """Its own model, if it has one; counts in any case."""
    engines: ServedEngines
    upstreams: Upstreams
    service: Service
    url: str

    async def chat(self, model: str | None = "far", **fields: Any) -> httpx.Response:
        named = {} if model is None else {"model": model}
        return await self.http.post(CHAT, json={**named, "messages": HI, **fields})

    async def stream(self, model: str = "far", path: str = CHAT, **fields: Any) -> tuple[int, str]:
        """Status and text of a stream that is read to its end."""
        body = {"model": model, "messages": HI, "stream": True, **fields}
        async with self.http.stream("POST", path, json=body) as answer:
            return answer.status_code, (await answer.aread()).decode()

    async def until(self, state: Callable[[str], bool], *urls: str) -> None:
        """The states of these upstreams, or of all, are so."""
        of = urls or [*self.upstreams.all]
        await eventually(lambda: all(state(self.upstreams.all[url].state) for url in of))


@asynccontextmanager
async def gateway(
    *urls: str,
    own: bool = False,
    engine: FakeEngine | None = None,
    keys: Mapping[str, str] | None = None,
    aliases: Mapping[str, str] | None = None,
    ready: bool = True,
    folder: Path | None = None,
    port: int = 0,
    headers: Mapping[str, str] | None = None,
    **settings: Any,
) -> AsyncGenerator[Gateway]:
    """own: whether it has a model itself, 'fake'. ready: wait until the upstreams answer. headers: of every request."""
    engine = engine or FakeEngine()
    before = asyncio.all_tasks()
    with TemporaryDirectory() as made, listening("127.0.0.1", port) as address:
        chosen = ApiSettings(**{"data": str(folder or made), "port": 0, "upstream": ",".join(urls), **settings})
        engines = ServedEngines([engine] if own else [], engine)
        upstreams = Upstreams(chosen, {} if keys is None else keys, engines.upstream_changed, look=0.05)
        app = create_app(engines, chosen, upstreams=upstreams)
        engines._aliases = dict(aliases or {})  # as a keeper sets them, which knows the upstreams' models
        server = ApiServer(app, address, chosen)
        serving = asyncio.ensure_future(server.serve())
        await eventually(lambda: server.started)
        url = f"http://127.0.0.1:{server.port}"
        async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False, headers=headers) as http:
            gate = Gateway(http, engine, engines, upstreams, app.state.service, url)
            try:
                if ready:
                    await gate.until(lambda state: not state)
                yield gate
            finally:
                server.stop()
                await serving
    await eventually(lambda: asyncio.all_tasks() <= before)


def over(
    work: Callable[..., Awaitable[None]],
    *upstreams: FakeUpstream,
    bound: float = 60.0,
    serve: Sequence[FakeUpstream] | None = None,
    **more: Any,
) -> None:
    """Runs `work(gateway, *upstreams)`. serve: those of them that are started; default: all. more: arguments of `gateway`."""

    async def go() -> None:
        async with asyncio.timeout(bound), AsyncExitStack() as stack:
            for upstream in upstreams:
                await upstream.start()
                stack.push_async_callback(upstream.stop)
            for upstream in upstreams:
                if serve is not None and upstream not in serve:
                    await upstream.stop()
            made = await stack.enter_async_context(gateway(*(upstream.url for upstream in upstreams), **more))
            await work(made, *upstreams)

    uvloop.run(go())
