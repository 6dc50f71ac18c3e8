"""Streams that are taken up again: after the client's connection broke, and after the engine was started anew."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2 as httpx
import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import NotReady, StageLost
from tests.support.app import app_of
from tests.support.engine import FakeEngine, Resumed, says, spoken
from tests.support.http import CHAT, HI, fetch, refused
from tests.support.resumed import NAME, Event, interleaved, left, parsed, restarted, texts


def streamed(engine: FakeEngine, **fields: Any) -> list[Event]:
    answer = fetch(app_of(engine), "POST", CHAT, json={"messages": HI, "stream": True, **fields}, headers=NAME)
    assert answer.status_code == 200, answer.text
    return parsed(answer.text)


Client = httpx.AsyncClient


def talk(engine: FakeEngine, work: Callable[[Client, FastAPI], Awaitable[Any]]) -> Any:
    """Several requests to one application in one loop."""

    async def go() -> Any:
        app = app_of(engine)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://shoal") as client, asyncio.timeout(10):
            return await work(client, app)

    return asyncio.run(go())


# Ids


def test_one_choice_counts_its_tokens() -> None:
    stream = streamed(FakeEngine(says("Hello")), stream_options={"include_usage": True})
    assert [id for id, _ in stream] == ["0", "1", "2", "3", "4", "5", "6", "7", "8"]
    assert stream[-1] == ("8", "[DONE]")
    assert "usage" in stream[-2][1]


def test_half_a_character_is_counted_with_the_other_half() -> None:
    assert [id for id, _ in streamed(FakeEngine(says("aé")))] == ["0", "1", "3", "4", "5"]


def test_choices_are_counted_each() -> None:
    stream = streamed(FakeEngine(says("ab", "xyz")), n=2)
    assert [id for id, _ in stream] == ["0.0", "1.0", "1.1", "2.1", "2.2", "3.2", "3.3", "3.4", "3.5"]


def test_an_error_has_no_id() -> None:
    stream = streamed(FakeEngine(lambda r: [*spoken(r, "Hel")[:3], StageLost("a node was lost")]))
    assert [id for id, _ in stream] == ["0", "1", "2", "3", None]


def test_every_answer_says_its_id() -> None:
    app = app_of(FakeEngine())
    whole = fetch(app, "POST", CHAT, json={"messages": HI})
    assert whole.headers["x-request-id"] == whole.json()["id"]
    named = fetch(app, "POST", CHAT, json={"messages": HI}, headers={"X-Request-Id": "a.b:c_d-1"})
    assert named.headers["x-request-id"] == named.json()["id"] == "a.b:c_d-1"


@pytest.mark.parametrize("name", ["", " ", "a b", "a/b", "-a", "ü", "x" * 129, "a\tb"])
def test_names_that_are_none_are_refused(name: str) -> None:
    answer = fetch(app_of(FakeEngine()), "POST", CHAT, json={"messages": HI}, headers={"X-Request-Id": name.encode("latin-1")})
    assert "X-Request-Id" in refused(answer, 400, "X-Request-Id")


def test_a_name_is_given_once() -> None:
    async def work(client: Client, app: FastAPI) -> None:
        first = await client.post(CHAT, json={"messages": HI, "stream": True}, headers=NAME)
        assert first.status_code == 200
        refused(await client.post(CHAT, json={"messages": HI}, headers=NAME), 409, "X-Request-Id", "id_taken")

    engine = FakeEngine()
    talk(engine, work)
    assert len(engine.streams) == 1


# A connection that broke


def test_a_stream_is_taken_up_after_the_last_event_that_came() -> None:
    whole = [id for id, _ in streamed(FakeEngine(says("Hello")))]

    async def work(client: Client, app: FastAPI) -> None:
        for after in range(1, len(whole) + 1):
            name = f"n{after}"
            seen = (await left(app, after + 1, name))[:after]
            rest = parsed((await client.get(f"/v1/streams/{name}", headers={"Last-Event-ID": str(seen[-1][0])})).text)
            assert [id for id, _ in seen + rest] == whole
            assert texts(seen + rest, 1) == ["Hello"]

    talk(FakeEngine(says("Hello")), work)


@pytest.mark.parametrize(
    "fields", [{"n": 3}, {"stop": "END", "n": 2}, {"logprobs": True, "top_logprobs": 2}, {"stream_options": {"include_usage": True}}]
)
def test_any_stream_can_be_read_again_from_any_event(fields: dict[str, Any]) -> None:
    async def work(client: Client, app: FastAPI) -> None:
        answer = await client.post(CHAT, json={"messages": HI, "stream": True, **fields}, headers=NAME)
        whole = parsed(answer.text)
        assert parsed((await client.get("/v1/streams/mine-1")).text) == whole
        for at, (id, _) in enumerate(whole):
            for headers, query in (({"Last-Event-ID": str(id)}, {}), ({}, {"after": str(id)})):
                assert parsed((await client.get("/v1/streams/mine-1", headers=headers, params=query)).text) == whole[at + 1 :]

    talk(FakeEngine(says("one END x", "two é", "drei")), work)


def test_nobody_reads_and_it_goes_on() -> None:
    async def work(client: Client, app: FastAPI) -> None:
        assert texts(await left(app, -1), 1) != ["Hello"]
        await turns()
        assert not engine.streams[0].closed
        assert not engine.streams[0]._items

    engine = FakeEngine(says("Hello"))
    talk(engine, work)


def test_nobody_came_back_and_it_is_cancelled() -> None:
    async def work(client: Client, app: FastAPI) -> None:
        await left(app, 2)
        assert list(engine.kept) == ["mine-1"]
        await asyncio.sleep(0.05)
        assert engine.streams[0].closed
        assert engine.kept == {}
        refused(await client.get("/v1/streams/mine-1"), 404, "id", "answer_not_found")
        assert (await client.post(CHAT, json={"messages": HI}, headers=NAME)).status_code == 200

    engine = FakeEngine(says("Hello"), hang=True)
    engine.resume = 0.02
    talk(engine, work)


def test_who_came_back_in_time_is_not_cut_off() -> None:
    async def work(client: Client, app: FastAPI) -> None:
        await left(app, 2)
        reading = asyncio.ensure_future(client.get("/v1/streams/mine-1"))
        await asyncio.sleep(0.08)
        assert not engine.streams[0].closed
        reading.cancel()

    engine = FakeEngine(lambda r: spoken(r, "Hello")[:2], hang=True)
    engine.resume = 0.03
    talk(engine, work)


@pytest.mark.parametrize("named", [False, True])
def test_only_who_gave_a_name_is_waited_for(named: bool) -> None:
    async def work(client: Client, app: FastAPI) -> None:
        await left(app, 2, "mine-1" if named else None)
        assert engine.streams[0].closed is not named
        assert bool(engine.kept) is named

    engine = FakeEngine(says("Hello"), hang=True)
    talk(engine, work)


def test_the_last_reader_has_the_stream() -> None:
    async def work(client: Client, app: FastAPI) -> None:
        first = asyncio.ensure_future(client.post(CHAT, json={"messages": HI, "stream": True}, headers=NAME))
        await asyncio.sleep(0.1)  # it is tokenised in a thread
        second = asyncio.ensure_future(client.get("/v1/streams/mine-1"))
        cut = parsed((await first).text)
        assert texts(cut, 1) == ["Hel"]
        assert cut[-1][1] != "[DONE]"
        await turns()
        third = asyncio.ensure_future(client.get("/v1/streams/mine-1"))
        assert texts(parsed((await second).text), 1) == ["Hel"]
        assert not engine.streams[0].closed
        third.cancel()

    engine = FakeEngine(lambda r: spoken(r, "Hello")[:3], hang=True)
    talk(engine, work)


def test_a_whole_answer_that_was_left_is_read_as_a_stream() -> None:
    async def work(client: Client, app: FastAPI) -> None:
        assert await left(app, -1, stream=False) == []
        assert texts(parsed((await client.get("/v1/streams/mine-1")).text), 1) == ["Hello"]

    talk(FakeEngine(says("Hello")), work)


@pytest.mark.parametrize("last", ["x", "1.2", "-1", "1" * 10, "1.", "²"])
def test_ids_that_are_none_are_refused(last: str) -> None:
    async def work(client: Client, app: FastAPI) -> None:
        await client.post(CHAT, json={"messages": HI, "stream": True}, headers=NAME)
        refused(await client.get("/v1/streams/mine-1", params={"after": last}), 400, "Last-Event-ID")

    talk(FakeEngine(), work)


def test_an_answer_that_never_was_is_not_found() -> None:
    refused(fetch(app_of(FakeEngine()), "GET", "/v1/streams/chatcmpl-0"), 404, "id", "answer_not_found")


# An engine that was started anew


async def turns(count: int = 30) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@settings(max_examples=40)
@given(st.data())
def test_nothing_is_missing_and_nothing_comes_twice_however_choices_interleave(data: st.DataObject) -> None:
    said = ("one é two", "größe END and", "3")
    orders = [data.draw(st.lists(st.integers(0, 2), max_size=30)) for _ in range(3)]
    fields = {"n": 3, "stop": "END", "logprobs": True, "stream_options": {"include_usage": True}}
    whole = streamed(FakeEngine(interleaved(orders[0], *said)), **fields)
    right = texts(whole, 3)
    seen: list[Event] = []

    async def work(client: Client, app: FastAPI) -> None:
        seen.extend(await left(app, data.draw(st.integers(2, len(whole))), **fields))

    async def again(client: Client, app: FastAPI) -> None:
        last = {"Last-Event-ID": str(seen[-1][0])}
        seen.extend(parsed((await client.get("/v1/streams/mine-1", headers=last)).text))

    before = FakeEngine(interleaved(orders[1], *said))
    talk(before, work)
    talk(restarted(before, interleaved(orders[2], *said)), again)
    assert texts(seen, 3) == right == ["one é two", "größe ", "3"]
    assert seen[-1] == (whole[-1][0], "[DONE]")
    assert len(seen) == len(whole)
    assert len({id for id, _ in seen}) == len(seen)


def test_what_an_engine_before_was_about_is_known_by_its_id() -> None:
    async def work(client: Client, app: FastAPI) -> None:
        await left(app, 2)

    async def again(client: Client, app: FastAPI) -> None:
        answer = await client.get("/v1/streams/mine-1")
        assert (answer.headers["x-request-id"], texts(parsed(answer.text), 1)) == ("mine-1", ["Hello"])
        events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        assert {e["id"] for e in events} == {"mine-1"}
        refused(await client.post(CHAT, json={"messages": HI}, headers=NAME), 409, "X-Request-Id", "id_taken")
        assert after.first_tokens == 0

    before = FakeEngine(says("Hello"), hang=True)
    talk(before, work)
    after = restarted(before, says("Hello"))
    talk(after, again)


def test_what_nobody_comes_back_for_ends() -> None:
    async def work(client: Client, app: FastAPI) -> None:
        await left(app, 2)

    async def again(client: Client, app: FastAPI) -> None:
        await asyncio.sleep(0.05)
        assert stream.closed
        refused(await client.get("/v1/streams/mine-1"), 404, "id", "answer_not_found")

    before = FakeEngine(says("Hello"), hang=True)
    talk(before, work)
    after = restarted(before, says("Hello"))
    after.resume = 0.02
    (stream,) = after.before[0].streams
    talk(after, again)


def test_a_note_of_another_version_is_let_go() -> None:
    async def again(client: Client, app: FastAPI) -> None:
        refused(await client.get("/v1/streams/old"), 404, "id", "answer_not_found")

    engine = FakeEngine()
    engine.kept["old"] = (b"?", [])
    engine.before = [Resumed("old", b"?", [], [])]
    talk(engine, again)
    assert engine.kept == {}


def test_a_choice_that_was_stopped_by_its_text_is_stopped_again() -> None:
    async def work(client: Client, app: FastAPI) -> None:
        await left(app, 2, stop="END")

    async def again(client: Client, app: FastAPI) -> None:
        await turns()
        assert stream.ended == {0}

    before = FakeEngine(says("Hello END more"), hang=True)
    talk(before, work)
    after = restarted(before, says("Hello END more"))
    (stream,) = after.before[0].streams
    talk(after, again)


def test_an_answer_that_a_shutdown_ended_is_kept_for_the_next_engine() -> None:
    async def work(client: Client, app: FastAPI) -> None:
        for headers in (NAME, {}):
            answer = await client.post(CHAT, json={"messages": HI, "stream": True}, headers=headers)
            assert parsed(answer.text)[-1][1]["error"]["code"] == "not_ready"
        assert list(engine.kept) == ["mine-1"]

    engine = FakeEngine(lambda r: [*spoken(r, "Hel")[:3], NotReady("the server is shutting down")])
    talk(engine, work)
