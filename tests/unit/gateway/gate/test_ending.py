"""A server that is about to end."""

from __future__ import annotations

import asyncio

import httpx2 as httpx

from shoal.gateway.auth.key_store import KeyStore
from tests.support.engine import FakeEngine, says
from tests.support.gate import ASK, app_of, service_of
from tests.support.http import CHAT, fetch, refused


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
