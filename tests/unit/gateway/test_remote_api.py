"""The API over several workers of one engine answers as the API of one process does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import time
from typing import Any

import httpx2 as httpx
import pytest
from fastapi import FastAPI

from shoal.config import ApiSettings
from shoal.errors import NotReady, StageLost
from shoal.gateway.app import create_app
from shoal.gateway.auth.key import KeyLimits
from shoal.gateway.auth.key_store import KeyStore
from shoal.gateway.auth.keyring import Keyring
from tests.support.app import app_of
from tests.support.engine import FakeEngine, Script, says, spoken
from tests.support.http import CHAT, COMPLETIONS, HI, Leaver, eventually, fetch, refused
from tests.support.remote import workers
from tests.support.requests import hello
from tests.support.resumed import NAME, interleaved, left, parsed, restarted, texts
from tests.support.slow_engine import SlowEngine


def over(fake: FakeEngine, work: Callable[..., Awaitable[Any]], count: int = 2, settings: ApiSettings | None = None) -> Any:
    """Some work with the clients, and then the applications, of so many workers."""

    async def go() -> Any:
        async with workers(fake) as made:
            joined = [await made.join() for _ in range(count)]
            apps = [create_app(worker, settings, limiter=worker.limiter) for worker in joined]
            transports = [httpx.ASGITransport(app, raise_app_exceptions=False) for app in apps]
            clients = [httpx.AsyncClient(transport=t, base_url="http://shoal") for t in transports]
            try:
                return await work(*clients, *apps)
            finally:
                for client in clients:
                    await client.aclose()

    return asyncio.run(go())


def remotely(fake: FakeEngine, method: str, path: str, **options: Any) -> httpx.Response:
    async def work(client: httpx.AsyncClient, app: FastAPI) -> httpx.Response:
        return await client.request(method, path, **options)

    return over(fake, work, count=1)


def without_time(answer: httpx.Response) -> tuple[int, str]:
    """What does not depend on when it was asked."""
    text = answer.text
    for line in text.removeprefix("data: ").split("\n") if text.startswith("{") else ():
        text = text.replace(str(json.loads(line).get("created")), "now")
    return answer.status_code, text


BODIES: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": HI}),
    (CHAT, {"messages": HI, "n": 3, "logprobs": True, "top_logprobs": 2}),
    (CHAT, {"messages": HI, "stop": ["never", "END"]}),
    (CHAT, {"messages": HI, "max_tokens": 3}),
    (COMPLETIONS, {"prompt": ["a", "bc"], "n": 2, "logprobs": 1}),
    (COMPLETIONS, {"prompt": [72, 105], "stop": "."}),
    (CHAT, {"messages": HI, "n": 0}),
    (CHAT, {"messages": HI, "temprature": 1}),
    (CHAT, {"messages": HI, "model": "gpt-9"}),
    (COMPLETIONS, {"prompt": [-1]}),
    (COMPLETIONS, {"prompt": "a", "max_tokens": 10**30}),
    (COMPLETIONS, {"prompt": "a", "seed": -(10**30)}),
]
SAID = ("one END é", "two.3", "drei 😀")


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_a_worker_answers_as_the_head_would(path: str, body: dict[str, Any]) -> None:
    headers = {"X-Request-Id": "same"}
    here = fetch(app_of(FakeEngine(says(*SAID))), "POST", path, json=body, headers=headers)
    there = remotely(FakeEngine(says(*SAID)), "POST", path, json=body, headers=headers)
    assert without_time(there) == without_time(here)


@pytest.mark.parametrize(("path", "body"), BODIES[:6])
def test_a_worker_streams_as_the_head_would(path: str, body: dict[str, Any]) -> None:
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    here, there = (
        parsed(answer.text)
        for answer in (
            fetch(app_of(FakeEngine(says(*SAID))), "POST", path, json=asked, headers=NAME),
            remotely(FakeEngine(says(*SAID)), "POST", path, json=asked, headers=NAME),
        )
    )
    choices = max(len((id or "").split(".")) for id, _ in here)
    assert texts(there, choices) == texts(here, choices)
    assert (there[-2:], len(there)) == (here[-2:], len(here))


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/fake", "/health", "/health/ready", "/metrics", "/v1/streams/none", "/nope"])
def test_what_is_asked_of_no_model_is_the_same(path: str) -> None:
    assert without_time(remotely(FakeEngine(), "GET", path)) == without_time(fetch(app_of(FakeEngine()), "GET", path))


def test_what_the_engine_refuses_has_its_status() -> None:
    fake = FakeEngine()
    fake.refusal = NotReady("no model yet")
    refused(remotely(fake, "POST", CHAT, json={"messages": HI, "stream": True}), 503, None, "not_ready")
    assert fake.observed == [("chat", "503", 0)]


def test_an_error_on_the_way_ends_a_stream_without_done() -> None:
    fake = FakeEngine(lambda r: [*spoken(r, "Hel")[:3], StageLost("a node was lost")])
    stream = parsed(remotely(fake, "POST", CHAT, json={"messages": HI, "stream": True}).text)
    assert texts(stream[:-1], 1) == ["Hel"]
    assert stream[-1][1]["error"]["message"] == "a node was lost"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_it_at_the_engine(stream: bool) -> None:
    async def work(client: httpx.AsyncClient, app: FastAPI) -> None:
        await Leaver({"messages": HI, "stream": stream}, 0).visit(app, CHAT)
        await eventually(lambda: fake.streams[0].closed and not fake.kept)

    fake = FakeEngine(hello, hang=True)
    over(fake, work, count=1)


def test_a_stop_string_ends_a_choice_at_the_engine() -> None:
    async def work(client: httpx.AsyncClient, app: FastAPI) -> None:
        answer = await client.post(CHAT, json={"messages": HI, "stop": "END"})
        assert answer.json()["choices"][0]["message"]["content"] == "before "
        assert fake.streams[0].ended == {0}

    fake = FakeEngine(says("before END after"), hang=True)
    over(fake, work, count=1)


# Answers that their clients come back for


@pytest.mark.parametrize("fields", [{}, {"n": 3}, {"stop": "END", "n": 2}, {"logprobs": True}])
def test_a_stream_can_be_read_again_from_any_event_by_any_worker(fields: dict[str, Any]) -> None:
    async def work(first: httpx.AsyncClient, second: httpx.AsyncClient, *apps: FastAPI) -> None:
        answer = await first.post(CHAT, json={"messages": HI, "stream": True, **fields}, headers=NAME)
        whole = parsed(answer.text)
        for at, (id, _) in enumerate(whole):
            for client in (second, first):
                again = await client.get("/v1/streams/mine-1", headers={"Last-Event-ID": str(id)})
                assert parsed(again.text) == whole[at + 1 :]

    over(FakeEngine(says(*SAID)), work)


def test_a_client_that_left_finds_the_rest_elsewhere() -> None:
    async def work(first: httpx.AsyncClient, second: httpx.AsyncClient, *apps: FastAPI) -> None:
        seen = (await left(apps[0], 4))[:3]
        rest = parsed((await second.get("/v1/streams/mine-1", headers={"Last-Event-ID": str(seen[-1][0])})).text)
        assert texts(seen + rest, 1) == ["Hello"]
        assert rest[-1][1] == "[DONE]"

    over(FakeEngine(says("Hello")), work)


def test_the_last_reader_has_the_stream_whichever_worker_it_asked() -> None:
    async def work(first: httpx.AsyncClient, second: httpx.AsyncClient, *apps: FastAPI) -> None:
        reading = asyncio.ensure_future(first.post(CHAT, json={"messages": HI, "stream": True}, headers=NAME))
        await eventually(lambda: fake.streams and not fake.streams[0]._items)
        for client in (second, first, second):
            following = asyncio.ensure_future(client.get("/v1/streams/mine-1"))
            cut = parsed((await reading).text)
            assert texts(cut, 1)[0] in ("", "H", "He", "Hel")
            assert cut == [] or cut[-1][1] != "[DONE]"
            reading = following
        assert not fake.streams[0].closed
        reading.cancel()

    fake = FakeEngine(hello, hang=True)
    over(fake, work)


def test_a_name_is_given_once_by_all_workers() -> None:
    async def work(first: httpx.AsyncClient, second: httpx.AsyncClient, *apps: FastAPI) -> None:
        assert (await first.post(CHAT, json={"messages": HI}, headers=NAME)).status_code == 200
        refused(await second.post(CHAT, json={"messages": HI}, headers=NAME), 409, "X-Request-Id", "id_taken")
        refused(await first.post(CHAT, json={"messages": HI}, headers=NAME), 409, "X-Request-Id", "id_taken")

    fake = FakeEngine()
    over(fake, work)
    assert len(fake.streams) == 1


def test_nobody_came_back_and_it_is_gone_for_all_workers() -> None:
    async def work(first: httpx.AsyncClient, second: httpx.AsyncClient, *apps: FastAPI) -> None:
        await left(apps[0], 2)
        (await second.get("/v1/streams/mine-1")).raise_for_status()  # it moves, and is left there
        await eventually(lambda: not fake.kept)
        for client in (first, second):
            refused(await client.get("/v1/streams/mine-1"), 404, "id", "answer_not_found")

    fake = FakeEngine(says("Hello"))
    fake.resume = 0.05
    over(fake, work)


def test_what_an_engine_before_was_about_is_found_by_every_worker() -> None:
    async def begin(client: httpx.AsyncClient, app: FastAPI) -> None:
        await left(app, 2)

    async def again(*both: Any) -> None:
        for client in both[:2]:
            assert texts(parsed((await client.get("/v1/streams/mine-1")).text), 1) == ["Hello"]

    script: Script = interleaved([], "Hello")
    before = FakeEngine(script, hang=True)
    over(before, begin, count=1)
    assert list(before.kept) == ["mine-1"]
    over(restarted(before, script), again)


def test_an_answer_that_ends_with_its_worker_is_not_disturbed_by_another() -> None:
    async def work(first: httpx.AsyncClient, second: httpx.AsyncClient, *apps: FastAPI) -> None:
        reading = asyncio.ensure_future(first.post(COMPLETIONS, json={"prompt": "a", "stream": True}, headers={"X-Priority": "batch"}))
        await eventually(lambda: fake.streams)
        id = fake.streams[0].request.id.removesuffix("-0")
        fake.say(3)
        refused(await second.get(f"/v1/streams/{id}"), 404, "id", "answer_not_found")
        fake.say(3)
        assert texts(parsed((await reading).text), 1) == ["Hello"]

    fake = SlowEngine()
    over(fake, work)


# Keys


def with_keys(folder: Path) -> tuple[ApiSettings, list[str]]:
    store = KeyStore(folder)
    tokens = [store.create(name, time(), limits=KeyLimits(requests=3))[1] for name in ("alice", "bob")]
    store.close()
    return ApiSettings(data=str(folder)), tokens


def test_a_key_is_limited_over_all_workers(tmp_path: Path) -> None:
    async def work(first: httpx.AsyncClient, second: httpx.AsyncClient, *apps: FastAPI) -> None:
        statuses = [
            (await client.post(CHAT, json={"messages": HI}, headers=alice)).status_code for client in (first, second, first, second)
        ]
        assert statuses == [200, 200, 200, 429]
        assert (await first.post(CHAT, json={"messages": HI})).status_code == 401

    settings, tokens = with_keys(tmp_path)
    alice = {"Authorization": f"Bearer {tokens[0]}"}
    over(FakeEngine(), work, settings=settings)


def test_another_key_neither_finds_nor_disturbs_an_answer(tmp_path: Path) -> None:
    async def work(first: httpx.AsyncClient, second: httpx.AsyncClient, *apps: FastAPI) -> None:
        alice, bob = ({"Authorization": f"Bearer {token}"} for token in tokens)
        reading = asyncio.ensure_future(first.post(CHAT, json={"messages": HI, "stream": True}, headers={**NAME, **alice}))
        await eventually(lambda: fake.streams)
        refused(await second.get("/v1/streams/mine-1", headers=bob), 404, "id", "answer_not_found")
        assert texts(parsed((await reading).text), 1) == ["Hello"]
        assert texts(parsed((await second.get("/v1/streams/mine-1", headers=alice)).text), 1) == ["Hello"]

    settings, tokens = with_keys(tmp_path)
    fake = FakeEngine()
    over(fake, work, settings=settings)


def test_tokens_said_after_the_engine_was_started_anew_are_counted_for_who_asked(tmp_path: Path) -> None:
    async def begin(*both: Any) -> None:
        leaver = Leaver({"messages": HI, "stream": True}, 2, headers={**NAME, **alice})
        await leaver.visit(both[1], CHAT)
        both[1].state.service.keyring.flush()

    async def again(*both: Any) -> None:
        assert texts(parsed((await both[0].get("/v1/streams/mine-1", headers=alice)).text), 1) == ["Hello"]
        both[1].state.service.keyring.flush()

    settings, tokens = with_keys(tmp_path)
    alice = {"Authorization": f"Bearer {tokens[0]}"}
    script: Script = interleaved([], "Hello")
    before = FakeEngine(lambda request: script(request)[:2], hang=True)
    over(before, begin, count=1, settings=settings)
    after = restarted(before, script)
    after.before[0].said = 2
    over(after, again, count=1, settings=settings)
    store = KeyStore(tmp_path)
    assert sum(key.completion_tokens for key in store.all()) == 6
    store.close()


def test_tokens_are_counted_once_wherever_the_answer_goes(tmp_path: Path) -> None:
    async def work(first: httpx.AsyncClient, second: httpx.AsyncClient, *apps: FastAPI) -> None:
        reading = asyncio.ensure_future(first.post(CHAT, json={"messages": HI, "stream": True}, headers={**NAME, **alice}))
        await eventually(lambda: fake.streams)
        fake.say(3)
        await eventually(lambda: spent() == 3)
        following = asyncio.ensure_future(second.get("/v1/streams/mine-1", headers=alice))
        await reading
        fake.say(3)
        assert texts(parsed((await following).text), 1) == ["Hello"]
        again = await first.get("/v1/streams/mine-1", headers=alice)
        assert texts(parsed(again.text), 1) == ["Hello"]
        assert spent() == 6

    def spent() -> int:
        for ring in rings:
            ring.flush()
        store = KeyStore(tmp_path)
        used = sum(key.completion_tokens for key in store.all())
        store.close()
        return used

    settings, tokens = with_keys(tmp_path)
    alice = {"Authorization": f"Bearer {tokens[0]}"}
    fake, rings = SlowEngine(), list[Keyring]()

    async def counted(*both: Any) -> None:
        rings.extend(app.state.service.keyring for app in both[2:])
        await work(*both)

    over(fake, counted, settings=settings)
