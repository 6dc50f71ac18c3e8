"""Pages of other origins, and WebSockets."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from time import time
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket

from shoal.gateway.auth.key_store import KeyStore
from tests.support.engine import FakeEngine
from tests.support.gate import ASK, app_of, bearer
from tests.support.http import CHAT, fetch, refused

# Pages of other origins


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://192.168.1.5:3000", "http://localhost.evil.example", "http://["])
def test_a_page_of_elsewhere_may_not_use_an_api_without_keys(store: KeyStore, origin: str) -> None:
    engine = FakeEngine()
    refused(fetch(app_of(store, engine), "POST", CHAT, json=ASK, headers={"Origin": origin}), 403, code="origin_not_allowed")
    assert engine.streams == []


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1", "http://[::1]:8080"])
def test_a_page_of_this_machine_may(store: KeyStore, origin: str) -> None:
    assert fetch(app_of(store), "POST", CHAT, json=ASK, headers={"Origin": origin}).status_code == 200


def test_with_a_key_the_origin_does_not_matter(store: KeyStore) -> None:
    _, token = store.create("alice", time())
    headers = {"Origin": "https://elsewhere.example", **bearer(token)}
    assert fetch(app_of(store), "POST", CHAT, json=ASK, headers=headers).status_code == 200


def test_no_page_may_read_anything_unless_configured(store: KeyStore) -> None:
    answer = fetch(app_of(store), "POST", CHAT, json=ASK, headers={"Origin": "http://localhost:3000"})
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert fetch(app_of(store), "OPTIONS", CHAT, headers=preflight("http://localhost:3000")).status_code == 405


def preflight(origin: str) -> dict[str, str]:
    asked = "authorization,content-type,x-stainless-lang"
    return {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": asked}


@pytest.mark.parametrize("cors", ["https://chat.example", "https://other.example, https://chat.example"])
def test_a_configured_page_asks_first_and_then_reads(store: KeyStore, cors: str) -> None:
    store.create("alice", time())
    app, origin = app_of(store, cors=cors), "https://chat.example"
    first = fetch(app, "OPTIONS", CHAT, headers=preflight(origin))
    assert (first.status_code, first.headers["access-control-allow-origin"]) == (200, origin)
    assert "x-stainless-lang" in first.headers["access-control-allow-headers"]
    error = fetch(app, "POST", CHAT, json=ASK, headers={"Origin": origin})
    refused(error, 401, code="invalid_api_key")
    assert error.headers["access-control-allow-origin"] == origin
    assert fetch(app, "OPTIONS", CHAT, headers=preflight("https://evil.example")).status_code == 400


def test_streams_and_bugs_reach_a_configured_page_too(store: KeyStore) -> None:
    origin = {"Origin": "https://chat.example"}
    app = app_of(store, cors="*")
    stream = fetch(app, "POST", CHAT, json={**ASK, "stream": True}, headers=origin)
    assert stream.headers["access-control-allow-origin"] == "*" and "[DONE]" in stream.text
    assert "x-request-id" in stream.headers["access-control-expose-headers"].lower()
    broken = FakeEngine(lambda request: 1 / 0)  # pyright: ignore[reportArgumentType]
    bug = fetch(app_of(store, broken, cors="*"), "POST", CHAT, json=ASK, headers=origin)
    assert (bug.status_code, bug.headers["access-control-allow-origin"]) == (500, "*")


# WebSockets


def websocket_app(store: KeyStore) -> FastAPI:
    app = app_of(store)

    @app.websocket("/v1/echo")
    async def echo(socket: WebSocket) -> None:
        await socket.accept()
        await socket.close()

    return app


def knock(app: FastAPI, headers: dict[str, str], extensions: dict[str, Any]) -> list[MutableMapping[str, Any]]:
    sent: list[MutableMapping[str, Any]] = []
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "websocket", "path": "/v1/echo", "raw_path": b"/v1/echo", "root_path": "", "query_string": b"", "headers": raw}

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app({**scope, "scheme": "ws", "subprotocols": [], "extensions": extensions}, receive, send))
    return sent


def test_a_websocket_asks_for_a_key_too(store: KeyStore) -> None:
    _, token = store.create("alice", time())
    app = websocket_app(store)
    denied = knock(app, {}, {"websocket.http.response": {}})
    assert (denied[0]["type"], denied[0]["status"]) == ("websocket.http.response.start", 401)
    assert knock(app, {}, {})[0]["type"] == "websocket.close"
    assert knock(app, bearer(token), {})[0]["type"] == "websocket.accept"


def test_a_page_of_elsewhere_may_not_open_a_websocket(store: KeyStore) -> None:
    app = websocket_app(store)
    assert knock(app, {"Origin": "https://evil.example"}, {})[0]["type"] == "websocket.close"
    assert knock(app, {}, {})[0]["type"] == "websocket.accept"
