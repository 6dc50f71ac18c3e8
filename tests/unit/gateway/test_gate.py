"""What is let in: keys, origins, sizes, rates, and a server that is about to end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from time import time
from typing import Any

import httpx2 as httpx
import pytest
from fastapi import FastAPI, WebSocket

from shoal.config import ApiSettings, HeadSettings
from shoal.errors import QueueFull
from shoal.gateway.app import create_app
from shoal.gateway.auth.gate import MAX_HEADERS, MAX_TARGET
from shoal.gateway.auth.key import KeyLimits
from shoal.gateway.auth.key_store import KeyStore
from shoal.gateway.service import MAX_DEPTH, Service
from shoal.request import Priority
from tests.support.engine import FakeEngine, says
from tests.support.http import CHAT, COMPLETIONS, HI, eventually, fetch, refused

ASK = {"messages": HI}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[KeyStore]:
    made = KeyStore(tmp_path)
    yield made
    made.close()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def app_of(store: KeyStore, engine: FakeEngine | None = None, **settings: Any) -> FastAPI:
    return create_app(engine or FakeEngine(), ApiSettings(data=str(store.path.parent), **settings))


def service_of(app: FastAPI) -> Service:
    return app.state.service


# Keys


def test_without_keys_nobody_needs_one(store: KeyStore) -> None:
    assert fetch(app_of(store), "POST", CHAT, json=ASK).status_code == 200
    assert fetch(app_of(store), "POST", CHAT, json=ASK, headers=bearer("unused")).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", CHAT),
        ("POST", COMPLETIONS),
        ("GET", "/v1/models"),
        ("GET", "/v1/streams/x"),
        ("GET", "/metrics"),
        ("GET", "/nothing"),
        ("POST", "/tokenize"),
    ],
)
def test_every_path_asks_for_a_key_once_there_is_one(store: KeyStore, method: str, path: str) -> None:
    _, token = store.create("alice", time())
    app = app_of(store)
    answer = fetch(app, method, path)
    refused(answer, 401, code="invalid_api_key")
    assert (answer.headers["www-authenticate"], answer.json()["error"]["type"]) == ("Bearer", "invalid_request_error")
    assert fetch(app, method, path, headers=bearer(token)).status_code != 401


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
def test_health_is_for_everybody(store: KeyStore, path: str) -> None:
    store.create("alice", time())
    assert fetch(app_of(store), "GET", path).status_code == 200


def test_nothing_is_read_of_a_request_without_a_key(store: KeyStore) -> None:
    store.create("alice", time())
    refused(fetch(app_of(store), "POST", CHAT, content=b"not json", headers={"Content-Type": "text/plain"}), 401, code="invalid_api_key")


@pytest.mark.parametrize("given", ["Bearer", "Bearer ", "Basic {}", "{}", "Bearer x{}", "Bearer {} {}"])
def test_other_ways_to_give_a_key_are_none(store: KeyStore, given: str) -> None:
    _, token = store.create("alice", time())
    answer = fetch(app_of(store), "POST", CHAT, json=ASK, headers={"Authorization": given.format(token, token)})
    refused(answer, 401, code="invalid_api_key")


def test_two_keys_at_once_are_none(store: KeyStore) -> None:
    _, token = store.create("alice", time())
    both = [("Authorization", f"Bearer {token}"), ("Authorization", f"Bearer {token}")]
    refused(fetch(app_of(store), "POST", CHAT, json=ASK, headers=both), 401, code="invalid_api_key")


def test_the_scheme_may_be_written_in_any_case(store: KeyStore) -> None:
    _, token = store.create("alice", time())
    assert fetch(app_of(store), "POST", CHAT, json=ASK, headers={"Authorization": f"bearer {token}"}).status_code == 200


def test_an_address_of_the_network_needs_a_key_even_where_none_was_made(store: KeyStore) -> None:
    app = app_of(store, api_host="0.0.0.0")
    refused(fetch(app, "POST", CHAT, json=ASK), 401, code="invalid_api_key")
    assert fetch(app_of(store, api_host="0.0.0.0", open_api=True), "POST", CHAT, json=ASK).status_code == 200


def test_unprotected_goes_for_the_api_too() -> None:
    open_to_all = ApiSettings(api_host="0.0.0.0")
    assert HeadSettings(api=open_to_all).needs_key
    assert not HeadSettings(api=open_to_all, unprotected=True).served_api.needs_key
    assert not HeadSettings().needs_key


def test_use_is_counted_by_key(store: KeyStore) -> None:
    _, alice = store.create("alice", time())
    _, bob = store.create("bob", time())
    app = app_of(store, FakeEngine(says("Hello")))
    fetch(app, "POST", CHAT, json=ASK, headers=bearer(alice))
    fetch(app, "POST", CHAT, json={**ASK, "stream": True, "max_tokens": 3}, headers=bearer(alice))
    fetch(app, "POST", COMPLETIONS, json={"prompt": "Hi", "max_tokens": 2}, headers=bearer(bob))
    fetch(app, "GET", "/v1/models", headers=bearer(bob))
    service_of(app).keyring.flush()
    used = {key.name: (key.requests, key.prompt_tokens, key.completion_tokens) for key in store.all()}
    prompt = len("user: Hi\n")
    assert used == {"alice": (2, 2 * prompt, 6 + 3), "bob": (1, 2, 2)}


def test_an_answer_belongs_to_the_key_that_asked(store: KeyStore) -> None:
    _, alice = store.create("alice", time())
    _, bob = store.create("bob", time())

    async def go() -> tuple[httpx.Response, httpx.Response, httpx.Response]:
        transport = httpx.ASGITransport(app_of(store))
        async with httpx.AsyncClient(transport=transport, base_url="http://shoal") as client:
            name = {"X-Request-Id": "mine-1"}
            first = await client.post(CHAT, json={**ASK, "stream": True}, headers={**name, **bearer(alice)})
            other, own = [await client.get("/v1/streams/mine-1", headers=bearer(token)) for token in (bob, alice)]
            return first, other, own

    first, other, own = asyncio.run(go())
    refused(other, 404, "id", "answer_not_found")
    assert own.text == first.text != ""


def test_a_key_s_class_bounds_what_its_requests_ask_for(store: KeyStore) -> None:
    _, token = store.create("nightly", time(), priority=Priority.FLEX)
    engine = FakeEngine()
    app = app_of(store, engine)
    for tier in ("priority", "default", "flex"):
        fetch(app, "POST", CHAT, json={**ASK, "service_tier": tier}, headers=bearer(token))
    assert [stream.request.priority for stream in engine.streams] == [Priority.FLEX] * 3


# Limits of a key


def test_a_key_s_rate_is_told_and_held(store: KeyStore) -> None:
    _, token = store.create("alice", time(), KeyLimits(requests=2, tokens=6000))
    app = app_of(store)
    first, second, third = [fetch(app, "POST", CHAT, json=ASK, headers=bearer(token)) for _ in range(3)]
    assert (first.headers["x-ratelimit-limit-requests"], first.headers["x-ratelimit-remaining-requests"]) == ("2", "1")
    assert first.headers["x-ratelimit-limit-tokens"] == "6000"
    assert first.headers["x-ratelimit-reset-requests"].endswith("s")
    assert second.headers["x-ratelimit-remaining-requests"] == "0"
    assert "2 requests a minute" in refused(third, 429, code="rate_limit_exceeded")
    assert third.json()["error"]["type"] == "requests"
    assert 1 <= int(third.headers["retry-after"]) <= 30


@pytest.mark.parametrize("path", ["/tokenize", "/v1/tokenize"])
def test_the_helpers_are_limited_by_either_name(store: KeyStore, path: str) -> None:
    _, token = store.create("alice", time(), KeyLimits(requests=1))
    app = app_of(store)
    assert fetch(app, "POST", path, json={"prompt": "a"}, headers=bearer(token)).status_code == 200
    refused(fetch(app, "POST", path, json={"prompt": "a"}, headers=bearer(token)), 429, code="rate_limit_exceeded")


def test_tokens_are_limited_too(store: KeyStore) -> None:
    _, token = store.create("alice", time(), KeyLimits(tokens=10))
    app = app_of(store)
    assert fetch(app, "POST", CHAT, json=ASK, headers=bearer(token)).status_code == 200
    answer = fetch(app, "POST", CHAT, json=ASK, headers=bearer(token))
    assert "10 tokens a minute" in refused(answer, 429, code="rate_limit_exceeded")
    assert answer.json()["error"]["type"] == "tokens"


def test_reading_is_not_counted(store: KeyStore) -> None:
    _, token = store.create("alice", time(), KeyLimits(requests=1, concurrency=1))
    app = app_of(store)
    for _ in range(3):
        assert fetch(app, "GET", "/v1/models", headers=bearer(token)).status_code == 200


def test_requests_at_once_are_limited_and_freed_by_who_leaves(store: KeyStore) -> None:
    _, token = store.create("alice", time(), KeyLimits(concurrency=1))
    engine = FakeEngine(lambda request: [], hang=True)
    app = app_of(store, engine)
    transport = httpx.ASGITransport(app)

    async def go() -> tuple[httpx.Response, list[int]]:
        async with httpx.AsyncClient(transport=transport, base_url="http://shoal", headers=bearer(token)) as client:
            running = asyncio.ensure_future(client.post(CHAT, json=ASK))
            await eventually(lambda: engine.streams)
            second = await client.post(CHAT, json=ASK)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            engine._script = says("Hello")
            after = [(await client.post(CHAT, json=ASK)).status_code for _ in range(2)]
            return second, after

    second, after = asyncio.run(go())
    assert "run already" in refused(second, 429, code="rate_limit_exceeded")
    assert after == [200, 200]


def test_a_full_queue_is_told_apart_from_a_key_s_limit(store: KeyStore) -> None:
    engine = FakeEngine()
    engine.refusal = QueueFull(512, 512)
    answer = fetch(app_of(store, engine), "POST", CHAT, json=ASK)
    refused(answer, 429, code="queue_full")
    assert answer.headers["retry-after"] == "5"


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
    broken = FakeEngine(lambda request: 1 / 0)  # type: ignore[arg-type, return-value]
    bug = fetch(app_of(store, broken, cors="*"), "POST", CHAT, json=ASK, headers=origin)
    assert (bug.status_code, bug.headers["access-control-allow-origin"]) == (500, "*")


# Sizes


def test_too_many_headers_are_refused(store: KeyStore) -> None:
    app = app_of(store)
    refused(fetch(app, "GET", "/health", headers=[("X-A", "1")] * (MAX_HEADERS + 1)), 431, code="request_too_large")
    assert fetch(app, "GET", "/health", headers=[("X-A", "1")] * (MAX_HEADERS - 10)).status_code == 200


def test_headers_that_are_too_long_are_refused(store: KeyStore) -> None:
    refused(fetch(app_of(store), "GET", "/health", headers={"X-A": "x" * 40_000}), 431, code="request_too_large")


def test_a_path_that_is_too_long_is_refused(store: KeyStore) -> None:
    refused(fetch(app_of(store), "GET", "/v1/models/" + "x" * MAX_TARGET), 414, code="request_too_large")
    refused(fetch(app_of(store), "GET", "/v1/models?" + "x" * MAX_TARGET), 414, code="request_too_large")


def test_a_length_that_is_too_much_is_refused_before_anything_is_read(store: KeyStore) -> None:
    headers = {"Content-Length": str(10**15), "Content-Type": "application/json"}
    refused(fetch(app_of(store), "POST", CHAT, content=b"{}", headers=headers), 413, code="request_too_large")


@pytest.mark.parametrize(("depth", "status"), [(MAX_DEPTH, "depth"), (MAX_DEPTH - 1, "field")])
def test_what_is_nested_too_deep_is_refused_before_it_is_parsed(store: KeyStore, depth: int, status: str) -> None:
    body = b'{"messages": %s%s}' % (b"[" * depth, b"]" * depth)
    message = fetch(app_of(store), "POST", CHAT, content=body).json()["error"]["message"]
    assert ("inside each other" in message) == (status == "depth")


def test_brackets_in_text_nest_nothing(store: KeyStore) -> None:
    text = "[" * 500 + '"\\' + "{" * 500
    engine = FakeEngine(longest=5000)
    assert fetch(app_of(store, engine), "POST", CHAT, json={"messages": [{"role": "user", "content": text}]}).status_code == 200


def test_a_prompt_that_can_never_fit_is_not_tokenised(store: KeyStore) -> None:
    engine = FakeEngine(longest=100)
    engine.tokenizer.encode = None  # type: ignore[assignment, method-assign]
    long = "x" * (64 * 100 + 1)
    app = app_of(store, engine)
    refused(fetch(app, "POST", COMPLETIONS, json={"prompt": long}), 400, "prompt", "context_length_exceeded")
    refused(fetch(app, "POST", CHAT, json={"messages": [{"role": "user", "content": long}]}), 400, "messages", "context_length_exceeded")


def test_biases_are_counted(store: KeyStore) -> None:
    refused(fetch(app_of(store), "POST", CHAT, json={**ASK, "logit_bias": {str(i): 0 for i in range(2000)}}), 400, "logit_bias")


# Kinds of bodies and methods


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "application/xml", "image/png"])
def test_a_body_that_says_it_is_no_json_is_refused(store: KeyStore, kind: str) -> None:
    answer = fetch(app_of(store), "POST", CHAT, content=b'{"messages": []}', headers={"Content-Type": kind})
    assert kind.split(";")[0] in refused(answer, 415, "Content-Type", "unsupported_media_type")


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "application/json; charset=utf-8",
        "APPLICATION/JSON",
        "application/vnd.x+json",
        "application/x-www-form-urlencoded",
    ],
)
def test_json_by_any_of_its_names_is_taken(store: KeyStore, kind: str) -> None:
    answer = fetch(
        app_of(store), "POST", CHAT, content=b'{"messages": [{"role": "user", "content": "Hi"}]}', headers={"Content-Type": kind}
    )
    assert answer.status_code == 200


def test_a_wrong_method_says_which_is_right(store: KeyStore) -> None:
    answer = fetch(app_of(store), "GET", CHAT)
    assert "POST" in refused(answer, 405)
    assert answer.headers["allow"] == "POST"


# A server that is about to end


def test_a_server_that_ends_takes_nothing_new_and_says_so(store: KeyStore) -> None:
    app = app_of(store)
    service_of(app).in_flight.close()
    answer = fetch(app, "POST", CHAT, json=ASK)
    refused(answer, 503, code="shutting_down")
    assert answer.headers["retry-after"] == "10"
    ready = fetch(app, "GET", "/health/ready")
    assert (ready.status_code, ready.json()["reason"]) == (503, "the server is shutting down")
    assert fetch(app, "GET", "/health/live").status_code == 200
    assert fetch(app, "GET", "/metrics").status_code == 200


def test_it_waits_for_those_inside(store: KeyStore) -> None:
    app = app_of(store, FakeEngine(says("x" * 200)))
    in_flight = service_of(app).in_flight

    async def go() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shoal") as client, asyncio.timeout(10):
            running = asyncio.ensure_future(client.post(CHAT, json={**ASK, "max_tokens": 200}))
            while not in_flight.inside:  # noqa: ASYNC110 - it is over in milliseconds
                await asyncio.sleep(0)
            in_flight.close()
            await in_flight.emptied()
            assert in_flight.inside == 0
            return await running

    assert len(asyncio.run(go()).json()["choices"][0]["message"]["content"]) == 200


# WebSockets


def websocket_app(store: KeyStore) -> FastAPI:
    app = app_of(store)

    @app.websocket("/v1/echo")
    async def echo(socket: WebSocket) -> None:
        await socket.accept()
        await socket.close()

    return app


def knock(app: FastAPI, headers: dict[str, str], extensions: dict[str, Any]) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "websocket", "path": "/v1/echo", "raw_path": b"/v1/echo", "root_path": "", "query_string": b"", "headers": raw}

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: dict[str, Any]) -> None:
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
