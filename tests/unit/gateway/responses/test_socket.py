"""Responses over a WebSocket: a real server, the openai package's own connection, and a bare one for what it would not send."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from openai import AsyncOpenAI
from openai.types.responses.responses_server_event import ResponsesServerEvent
from pydantic import TypeAdapter
from websockets.asyncio.client import ClientConnection, connect

from shoal.config import ApiSettings
from shoal.errors import StageLost
from tests.support.app import app_of
from tests.support.engine import FakeEngine, says, spoken
from tests.support.http import eventually, serving

EVENT: TypeAdapter[Any] = TypeAdapter(ResponsesServerEvent)
Talk = Callable[[ClientConnection], Awaitable[Any]]


def talk(engine: FakeEngine, folder: Path, work: Talk, **settings: Any) -> Any:
    async def go() -> Any:
        app = app_of(engine, ApiSettings(data=str(folder), **settings))
        async with asyncio.timeout(60), serving(app) as port, connect(f"ws://127.0.0.1:{port}/v1/responses", proxy=None) as socket:
            return await work(socket)

    return asyncio.run(go())


async def create(socket: ClientConnection, input: Any = "Hi", **fields: Any) -> None:
    await socket.send(json.dumps({"type": "response.create", "input": input, **fields}))


async def heard(socket: ClientConnection, ends: int = 1) -> list[dict[str, Any]]:
    """Messages up to the end of so many turns; each is one that the openai package knows."""
    out: list[dict[str, Any]] = []
    while ends:
        out.append(json.loads(await socket.recv()))
        EVENT.validate_json(json.dumps(out[-1]), strict=True)
        ends -= out[-1]["type"] in ("response.completed", "response.incomplete", "response.failed") or "status" in out[-1]
    return out


def asked_of(engine: FakeEngine) -> str:
    return engine.tokenizer.decode(engine.streams[-1].request.prompt)


@pytest.mark.slow
def test_the_openai_package_s_connection(tmp_path: Path) -> None:
    async def go() -> None:
        async with asyncio.timeout(60), serving(app_of(FakeEngine(says("Hello")), ApiSettings(data=str(tmp_path)))) as port:
            client = AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
            async with client.responses.connect() as connection:
                said = ""
                await connection.send({"type": "response.create", "model": "fake", "input": "Hi"})
                async for event in connection:
                    if event.type == "response.output_text.delta":
                        said += event.delta
                    if event.type == "response.completed":
                        assert event.response.output_text == said == "Hello"
                        break
            await client.close()

    asyncio.run(go())


def test_the_events_are_those_of_a_stream(tmp_path: Path) -> None:
    async def work(socket: ClientConnection) -> list[dict[str, Any]]:
        await create(socket)
        return await heard(socket)

    told = talk(FakeEngine(says("Hi")), tmp_path, work)
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    assert [event["type"].removeprefix("response.") for event in told] == [
        *("created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    assert all("stream_id" not in event for event in told)


@pytest.mark.parametrize("store", [True, False])
def test_a_turn_goes_on_from_the_one_before_stored_or_not(tmp_path: Path, store: bool) -> None:
    engine = FakeEngine(says("Hello"))

    async def work(socket: ClientConnection) -> None:
        previous = None
        for input in ("One", "Two", "Three"):
            await create(socket, input, store=store, previous_response_id=previous)
            previous = (await heard(socket))[-1]["response"]["id"]
        assert asked_of(engine) == "user: One\nassistant: Hello\nuser: Two\nassistant: Hello\nuser: Three\n"

    talk(engine, tmp_path, work)


def test_what_was_not_stored_is_known_to_its_connection_alone(tmp_path: Path) -> None:
    async def work(socket: ClientConnection) -> dict[str, Any]:
        await create(socket, store=False)
        id = (await heard(socket))[-1]["response"]["id"]
        port = socket.remote_address[1]
        async with connect(f"ws://127.0.0.1:{port}/v1/responses", proxy=None) as other:
            await create(other, previous_response_id=id, stream_id="a")
            return (await heard(other))[-1]

    refused = talk(FakeEngine(), tmp_path, work)
    assert (refused["type"], refused["status"], refused["stream_id"]) == ("error", 400, "a")
    assert (refused["error"]["code"], refused["error"]["param"]) == ("previous_response_not_found", "previous_response_id")


def test_streams_run_at_once_and_turns_of_one_after_another(tmp_path: Path) -> None:
    engine = FakeEngine(lambda request: [], hang=True)

    async def work(socket: ClientConnection) -> None:
        for stream in ("a", "b", "a"):
            await create(socket, stream_id=stream)
        await eventually(lambda: len(engine.streams) == 2)
        await asyncio.sleep(0.05)
        assert len(engine.streams) == 2
        assert {json.loads(await socket.recv())["stream_id"] for _ in range(4)} == {"a", "b"}

    talk(engine, tmp_path, work)
    assert all(stream.closed for stream in engine.streams)


def test_of_streams_that_are_over_nothing_is_left(tmp_path: Path) -> None:
    async def work(socket: ClientConnection) -> int:
        async def turns(count: int) -> int:
            for _ in range(count):
                await create(socket, generate=False, store=False, stream_id=uuid4().hex)
                await heard(socket)
            gc.collect()
            return sum(type(each) is asyncio.Lock for each in gc.get_objects())

        return await turns(1) - await turns(20)

    assert talk(FakeEngine(), tmp_path, work) == 0


def test_a_turn_without_an_answer_is_one_to_go_on_from(tmp_path: Path) -> None:
    engine = FakeEngine(says("Hello"))

    async def work(socket: ClientConnection) -> None:
        await create(socket, "Know this.", generate=False, store=False)
        told = await heard(socket)
        assert ([event["type"] for event in told][-1], told[-1]["response"]["output"]) == ("response.completed", [])
        assert engine.streams == []
        await create(socket, "Go.", previous_response_id=told[-1]["response"]["id"])
        await heard(socket)
        assert asked_of(engine) == "user: Know this.\nuser: Go.\n"

    talk(engine, tmp_path, work)


@pytest.mark.parametrize(
    ("message", "status", "param"),
    [
        ("no json", 400, None),
        (json.dumps({"input": "Hi"}), 400, "type"),
        (json.dumps({"type": "response.steer", "input": "Hi"}), 400, "type"),
        (json.dumps({"type": "response.create"}), 400, "input"),
        (json.dumps({"type": "response.create", "input": "Hi", "background": True}), 400, "background"),
        (json.dumps({"type": "response.create", "input": "Hi", "stream_id": 5}), 400, "stream_id"),
        (json.dumps({"type": "response.create", "input": "Hi", "model": "other"}), 404, "model"),
        ("\ufeff" + json.dumps({"type": "response.create", "input": "Hi", "model": "other"}), 404, "model"),
    ],
)
def test_what_cannot_be_served_is_an_error_and_the_connection_stays(tmp_path: Path, message: str, status: int, param: str | None) -> None:
    async def work(socket: ClientConnection) -> None:
        await socket.send(message)
        (refused,) = await heard(socket)
        assert (refused["type"], refused["status"], refused["error"]["param"]) == ("error", status, param)
        await create(socket)
        assert (await heard(socket))[-1]["type"] == "response.completed"

    talk(FakeEngine(), tmp_path, work)


def test_a_turn_that_fails_says_so(tmp_path: Path) -> None:
    async def work(socket: ClientConnection) -> list[dict[str, Any]]:
        await create(socket)
        return await heard(socket)

    engine = FakeEngine(lambda request: [*spoken(request, "Hello")[:2], StageLost("node-1 is gone")])
    *_, error, failed = talk(engine, tmp_path, work)
    assert (error["type"], failed["type"], failed["response"]["status"]) == ("error", "response.failed", "failed")
    assert error["error"]["message"] == failed["response"]["error"]["message"]
