"""Servers of several models, each of which says its own name: in this process, over the socket to a worker, and behind the response cache."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import httpx2 as httpx
from fastapi import FastAPI

from shoal.config import ApiSettings
from shoal.errors import NotReady
from shoal.gateway.app import create_app
from shoal.gateway.engines import Engines, ServedEngines
from shoal.request import Request
from shoal.text.tools import HERMES
from tests.support.engine import FakeEngine, Item, Script, says
from tests.support.http import eventually
from tests.support.remote import Workers

ALIASES = {"gpt-4o": "beta", "best": "gpt-4o"}


class Called(FakeEngine):
    """A model of that name, which it says."""

    def __init__(self, name: str, script: Script | None = None, *, hang: bool = False, longest: int = 1000) -> None:
        super().__init__(script or says(name), hang=hang, tools=HERMES, longest=longest)
        self.name, self.identity, self.created = name, f"{name} 1", 7 + len(name)

    def longest(self) -> int:
        if self.state:
            raise NotReady(self.state)
        return super().longest()


def half(request: Request) -> list[Item]:
    """The beginning of an answer."""
    return says("Hello")(request)[:3]


class OnDemand(ServedEngines):
    """Loads a model when it is asked for; the test says when that is done."""

    def __init__(self, engines: list[Called], known: list[Called]) -> None:
        self._known = {engine.name: engine for engine in known}
        self.loaded = asyncio.Event()
        self.asked: list[str] = []
        super().__init__(engines, engines[0])

    @property
    def names(self) -> list[str]:
        return [*super().names, *(name for name in self._known if name not in self._engines)]

    @property
    def states(self) -> Mapping[str, str]:
        return {**dict.fromkeys(self.names, "it is loaded when it is asked for"), **super().states}

    async def missing(self, name: str) -> Any:
        self.asked.append(name)
        try:
            await self.loaded.wait()
        except asyncio.CancelledError:
            self.asked.append("nobody")
            raise
        self.add(self._known[name])
        return self._known[name]


class Place:
    """A server, and a client of it. engines: those of the head."""

    def __init__(self, engines: ServedEngines, seen: Engines, app: FastAPI, http: httpx.AsyncClient, workers: Workers | None) -> None:
        self.engines, self.seen, self.app, self.http, self.workers = engines, seen, app, http, workers

    @property
    def models(self) -> list[Called]:
        return calleds(self.engines)

    async def post(self, path: str, body: dict[str, Any], **more: Any) -> Any:
        """The answer's JSON."""
        answer = await self.http.post(path, json=body, **more)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def settled(self) -> None:
        """Returns when what was changed at the head is known here."""

        def known() -> bool:
            theirs, ours = self.engines, self.seen
            there = {engine.name: engine.state for engine in theirs.all}
            same = {engine.name: engine.state for engine in ours.all} == there
            return same and ([*ours.names], ours.aliases, ours.state) == ([*theirs.names], theirs.aliases, theirs.state)

        await eventually(known)


def calleds(engines: ServedEngines) -> list[Called]:
    """The engines of a server, as what they are here."""
    return [cast("Called", engine) for engine in engines.all]


def client(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://shoal")


@asynccontextmanager
async def place(kind: str, engines: ServedEngines, **settings: Any) -> AsyncGenerator[Place]:
    """kind: here, elsewhere, cached"""
    with TemporaryDirectory(prefix="shoal-") as folder:
        chosen = ApiSettings(**{"data": folder, **({"response_cache": "1MiB"} if kind == "cached" else {}), **settings})
        if kind != "elsewhere":
            app = create_app(engines, chosen)
            async with client(app) as http:
                yield Place(engines, engines, app, http, None)
            return
        made = Workers(engines, Path(folder), chosen)
        await made.server.start(made.path)
        try:
            worker = await made.join()
            app = create_app(worker, chosen, limiter=worker.limiter)
            async with client(app) as http:
                yield Place(engines, worker, app, http, made)
        finally:
            await made.end()


Work = Callable[[Place], Awaitable[Any]]


def at(kind: str, engines: Callable[[], ServedEngines], work: Work, **settings: Any) -> Any:
    """The work with a server of these engines, which are made in its event loop."""

    async def go() -> Any:
        async with asyncio.timeout(60), place(kind, engines(), **settings) as made:
            return await work(made)

    return asyncio.run(go())


def served(*engines: Called, aliases: Mapping[str, str] | None = None) -> ServedEngines:
    return ServedEngines(engines, engines[0], ALIASES if aliases is None else aliases)
