"""Who is let in by which key, and how much a key may ask."""

from __future__ import annotations

import asyncio
from time import time

import httpx2 as httpx
import pytest

from shoal.config import ApiSettings, HeadSettings
from shoal.errors import QueueFull
from shoal.gateway.auth.key import KeyLimits
from shoal.gateway.auth.key_store import KeyStore
from shoal.request import Priority
from tests.support.engine import FakeEngine, says
from tests.support.gate import ASK, app_of, bearer, service_of
from tests.support.http import CHAT, COMPLETIONS, eventually, fetch, refused

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
    assert "are already running" in refused(second, 429, code="rate_limit_exceeded")
    assert after == [200, 200]


def test_a_full_queue_is_told_apart_from_a_key_s_limit(store: KeyStore) -> None:
    engine = FakeEngine()
    engine.refusal = QueueFull(512, 512)
    answer = fetch(app_of(store, engine), "POST", CHAT, json=ASK)
    refused(answer, 429, code="queue_full")
    assert answer.headers["retry-after"] == "5"
