"""HTTP to an application in this process: whole answers by httpx, clients that leave by speaking ASGI."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable, MutableMapping
from typing import Any

import httpx2 as httpx
from fastapi import FastAPI

from shoal.gateway.engine import Engine
from shoal.gateway.server import ApiServer, listening
from tests.support.app import app_of

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def fetch(app: FastAPI, method: str, path: str, **options: Any) -> httpx.Response:
    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://shoal") as client:
            return await client.request(method, path, **options)

    return asyncio.run(go())


@contextlib.asynccontextmanager
async def serving(app: FastAPI) -> AsyncGenerator[int]:
    """The port of the loopback at which a real server answers."""
    with listening("127.0.0.1", 0) as address:
        server = ApiServer(app, address)
        running = asyncio.create_task(server.serve())
        try:
            yield server.port
        finally:
            server.stop()
            await running


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    """The server-sent events, without [DONE], which has to be the last unless an error is."""
    assert answer.headers["content-type"].startswith("text/event-stream"), answer.text
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    done = [json.loads(line) for line in lines if line != "[DONE]"]
    assert (lines[-1] == "[DONE]") != ("error" in done[-1])
    assert lines.count("[DONE]") <= 1
    return done


async def eventually(what: Callable[[], Any], bound: float = 30.0) -> None:
    """Returns when something is true; fails where that does not happen within the bound, which is seconds."""
    async with asyncio.timeout(bound):
        while not what():  # noqa: ASYNC110 - it is about whatever a test looks at
            await asyncio.sleep(0.005)


class Leaver:
    """A client that goes away after so many body parts; 0: before the first, -1: as soon as the request is sent."""

    def __init__(self, body: dict[str, Any], after: int, *, stuck: bool = False, headers: dict[str, str] | None = None) -> None:
        self._request: bytes | None = json.dumps(body).encode()
        self._after, self._stuck = after, stuck
        self._parts = 0
        self._headers = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
        self._left = asyncio.Event()
        self.sent: list[MutableMapping[str, Any]] = []

    async def _receive(self) -> dict[str, Any]:
        if self._request is not None:
            body, self._request = self._request, None
            return {"type": "http.request", "body": body, "more_body": False}
        if self._after >= 0:
            if self._after == 0:
                asyncio.get_running_loop().call_later(0.01, self._left.set)
            await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        self.sent.append(message)
        self._parts += message["type"] == "http.response.body"
        if 0 < self._after <= self._parts:
            self._left.set()
            if self._stuck:
                await asyncio.Event().wait()

    async def visit(self, app: FastAPI, path: str) -> None:
        scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST"}
        where = {"scheme": "http", "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"", "headers": self._headers}
        async with asyncio.timeout(10):
            await app({**scope, **where}, self._receive, self._send)


HI = [{"role": "user", "content": "Hi"}]


def ask(engine: Engine, **fields: Any) -> httpx.Response:
    return fetch(app_of(engine), "POST", CHAT, json={"messages": HI, **fields})


def complete(engine: Engine, **fields: Any) -> httpx.Response:
    return fetch(app_of(engine), "POST", COMPLETIONS, json={"prompt": "Hi", **fields})


def refused(answer: httpx.Response, status: int, param: str | None = None, code: str | None = None) -> str:
    """The message of OpenAI's error object, which is complete."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"], error["code"]) == (param, code), error
    return str(error["message"])


def choice_text(stream: list[dict[str, Any]], index: int = 0) -> str:
    deltas = [c["delta"] for event in stream for c in event["choices"] if c["index"] == index]
    return "".join(delta.get("content") or "" for delta in deltas)
