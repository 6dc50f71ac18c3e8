"""Chat over a WebSocket: a real server and a real client around an engine that says what it is told to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import time
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from shoal.config import ApiSettings
from shoal.errors import QueueFull, StageLost
from shoal.gateway.auth.key import KeyLimits
from shoal.gateway.auth.key_store import KeyStore
from shoal.gateway.auth.keyring import REFRESH
from shoal.gateway.service import MAX_BODY
from tests.support.api import api, run
from tests.support.app import app_of
from tests.support.engine import FakeEngine, Script, says, spoken
from tests.support.http import CHAT, events, eventually, fetch, serving

HI = [{"role": "user", "content": "Hi"}]
Talk = Callable[[ClientConnection], Awaitable[Any]]


def talk(engine: FakeEngine, work: Talk) -> Any:
    async def go() -> Any:
        async with asyncio.timeout(20), serving(app_of(engine)) as port, connect(f"ws://127.0.0.1:{port}{CHAT}", proxy=None) as socket:
            return await work(socket)

    return asyncio.run(go())


async def ask(socket: ClientConnection, **fields: Any) -> None:
    await socket.send(json.dumps({"messages": HI, **fields}))


async def heard(socket: ClientConnection, ends: int = 1) -> list[dict[str, Any]]:
    """Messages up to the end of so many requests: that they are done, or an error."""
    out: list[dict[str, Any]] = []
    while ends:
        out.append(json.loads(await socket.recv()))
        ends -= out[-1].get("type") == "done" or "error" in out[-1]
    return out


def asking(**fields: Any) -> Talk:
    async def work(socket: ClientConnection) -> list[dict[str, Any]]:
        await ask(socket, **fields)
        return await heard(socket)

    return work


def content(chunks: list[dict[str, Any]], id: str | None = None) -> str:
    return "".join(c["delta"].get("content") or "" for m in chunks if id in (None, m["id"]) for c in m.get("choices", ()))


def nameless(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in chunk.items() if key not in ("id", "created")} for chunk in chunks]


def test_messages_are_the_chunks_of_the_stream():
    fields: dict[str, Any] = {"seed": 1, "stream_options": {"include_usage": True}, "logprobs": True}
    *chunks, done = talk(FakeEngine(says("Hello")), asking(**fields))
    streamed = events(fetch(app_of(FakeEngine(says("Hello"))), "POST", CHAT, json={"messages": HI, "stream": True, **fields}))
    assert nameless(chunks) == nameless(streamed)
    assert done == {"type": "done", "id": chunks[0]["id"]}


def test_an_answer_that_is_not_to_be_streamed_is_one_message():
    whole, done = talk(FakeEngine(says("Hello")), asking(stream=False, id="a"))
    assert (whole["object"], whole["id"], whole["choices"][0]["message"]["content"]) == ("chat.completion", "a", "Hello")
    assert done == {"type": "done", "id": "a"}


def test_one_request_follows_another_on_a_connection():
    async def work(socket: ClientConnection) -> None:
        for _ in range(3):
            await ask(socket)
            assert content(await heard(socket)) == "Hello"

    engine = FakeEngine(says("Hello"))
    talk(engine, work)
    assert engine.observed == [("chat", "accepted", 9)] * 3


def test_several_requests_run_at_once_and_are_told_apart():
    async def work(socket: ClientConnection) -> list[dict[str, Any]]:
        for id in "abc":
            await ask(socket, id=id)
        return await heard(socket, 3)

    said = talk(FakeEngine(says("Hello")), work)
    assert [content(said, id) for id in "abc"] == ["Hello"] * 3
    assert [m["id"] for m in said if m.get("type") == "done"] != [] and {m["id"] for m in said} == set("abc")


@pytest.mark.parametrize(
    ("message", "status", "param"),
    [
        ("no json", 400, None),
        ("[1]", 400, None),
        ("", 400, None),
        (b"\xff", 400, None),
        (json.dumps({"messages": []}), 400, "messages"),
        (json.dumps({"messages": HI, "nonsense": 1}), 400, "nonsense"),
        (json.dumps({"messages": HI, "id": 5}), 400, "id"),
        (json.dumps({"messages": HI, "id": "x" * 200}), 400, "id"),
        (json.dumps({"messages": HI, "model": "other"}), 404, "model"),
    ],
)
def test_what_cannot_be_served_is_an_error_and_the_connection_stays(message: str | bytes, status: int, param: str | None):
    async def work(socket: ClientConnection) -> dict[str, Any]:
        await socket.send(message)
        (refusal,) = await heard(socket)
        await ask(socket)
        assert content(await heard(socket)) == "Hello"
        return refusal

    refusal = talk(FakeEngine(says("Hello")), work)
    assert (refusal["status"], refusal["error"]["param"], refusal["error"]["type"]) == (status, param, "invalid_request_error")


def test_a_refusal_names_its_request_and_says_when_to_come_back():
    engine = FakeEngine()
    engine.refusal = QueueFull(1, 1)
    (refusal,) = talk(engine, asking(id="a"))
    assert (refusal["id"], refusal["status"], refusal["retry_after"], refusal["error"]["code"]) == ("a", 429, 5, "queue_full")
    assert engine.observed == [("chat", "429", 0)]


@pytest.mark.parametrize("stream", [True, False])
def test_a_failure_under_way_is_an_error_of_that_request_alone(stream: bool):
    failing: list[bool] = [True]

    def script(request: Any) -> Any:
        return [*spoken(request, "Hel")[:2], StageLost("stage 1: gone")] if failing.pop() else spoken(request, "Hello")

    async def work(socket: ClientConnection) -> list[dict[str, Any]]:
        await ask(socket, id="a", stream=stream)
        said = await heard(socket)
        failing.append(False)
        await ask(socket, id="a")
        assert content(await heard(socket)) == "Hello"
        return said

    last = talk(FakeEngine(script), work)[-1]
    assert (last["id"], last["error"]["message"]) == ("a", "stage 1: gone")


def hanging(script: Script | None = None) -> FakeEngine:
    return FakeEngine(script or (lambda request: spoken(request, "Hello")[:2]), hang=True)


def test_an_id_that_runs_is_not_given_twice():
    async def work(socket: ClientConnection) -> dict[str, Any]:
        await ask(socket, id="a")
        await socket.recv()
        await ask(socket, id="a")
        return (await heard(socket))[-1]

    assert talk(hanging(), work)["error"]["param"] == "id"


def test_a_connection_runs_only_so_many_requests_at_once():
    async def work(socket: ClientConnection) -> dict[str, Any]:
        for id in range(17):
            await ask(socket, id=str(id))
        return (await heard(socket))[-1]

    refusal = talk(hanging(), work)
    assert (refusal["id"], refusal["status"]) == ("16", 429)


@pytest.mark.parametrize("abort", [True, False])
def test_whoever_closes_the_connection_cancels_what_runs(abort: bool):
    engine = hanging()

    async def work(socket: ClientConnection) -> None:
        for id in "ab":
            await ask(socket, id=id)
        while len(engine.streams) < 2:
            await socket.recv()
        if abort:
            socket.transport.abort()
        else:
            await socket.close()
        while not all(stream.closed for stream in engine.streams):  # noqa: ASYNC110 - the engine tells nobody
            await asyncio.sleep(0.01)

    talk(engine, work)
    assert len(engine.streams) == 2


def test_a_message_that_is_too_large_closes_the_connection():
    async def work(socket: ClientConnection) -> None:
        await socket.send(json.dumps({"messages": [{"role": "user", "content": "x" * MAX_BODY}]}))
        await socket.recv()

    async def ended(socket: ClientConnection) -> int | None:
        with pytest.raises(ConnectionClosedError) as closed:
            await work(socket)
        return closed.value.rcvd and closed.value.rcvd.code

    engine = FakeEngine()
    assert talk(engine, ended) == 1009
    assert engine.streams == []


def test_a_key_comes_with_the_handshake_and_counts_each_request(tmp_path: Path):
    keys = KeyStore(tmp_path)
    _, token = keys.create("alice", time(), KeyLimits(requests=2))

    async def go() -> list[dict[str, Any]]:
        app = app_of(FakeEngine(says("Hello")), ApiSettings(data=str(tmp_path)))
        async with asyncio.timeout(20), serving(app) as port:
            url = f"ws://127.0.0.1:{port}{CHAT}"
            with pytest.raises(InvalidStatus) as refused:
                await connect(url, proxy=None)
            assert refused.value.response.status_code == 401
            async with connect(url, proxy=None, additional_headers={"Authorization": f"Bearer {token}"}) as socket:
                said: list[dict[str, Any]] = []
                for _ in range(3):
                    await ask(socket)
                    said.append((await heard(socket))[-1])
                return said

    first, second, third = asyncio.run(go())
    assert first["type"] == second["type"] == "done"
    assert (third["status"], third["error"]["code"]) == (429, "rate_limit_exceeded")


def test_a_key_that_is_revoked_asks_nothing_more_on_an_open_connection(tmp_path: Path):
    async def go() -> list[dict[str, Any]]:
        app = app_of(engine, ApiSettings(data=str(tmp_path)))
        said: list[dict[str, Any]] = []
        async with asyncio.timeout(20), serving(app) as port, connect(f"ws://127.0.0.1:{port}{CHAT}", proxy=None) as stranger:
            await ask(stranger)
            said.append((await heard(stranger))[-1])
            _, token = keys.create("alice", time())
            await asyncio.sleep(2 * REFRESH)
            headers = {"Authorization": f"Bearer {token}"}
            async with connect(f"ws://127.0.0.1:{port}{CHAT}", proxy=None, additional_headers=headers) as socket:
                for one in (stranger, socket):
                    await ask(one)
                    said.append((await heard(one))[-1])
                keys.revoke("alice", time())
                await asyncio.sleep(2 * REFRESH)
                await ask(socket)
                said.append((await heard(socket))[-1])
        return said

    keys, engine = KeyStore(tmp_path), FakeEngine()
    before_keys, without, good, revoked = asyncio.run(go())
    assert before_keys["type"] == good["type"] == "done"
    assert (without["status"], revoked["status"], revoked["error"]["code"]) == (401, 401, "invalid_api_key")
    assert len(engine.streams) == 2


@pytest.mark.slow
def test_a_client_that_reads_nothing_is_dropped_with_what_waits_for_it():
    async def go() -> None:
        async with (
            api(FakeEngine(says("x" * 4000), longest=8000), stall=1) as made,
            connect(f"ws://127.0.0.1:{made.server.port}{CHAT}", proxy=None, max_queue=1, ping_interval=None) as client,
        ):
            await ask(client, logprobs=True, top_logprobs=20)
            await eventually(lambda: made.server.inside)
            await eventually(lambda: not made.server.inside)
            client.transport.abort()

    run(go)


@pytest.mark.slow
def test_a_slow_reader_holds_back_itself_alone():
    """What it does not read is not sent, and it gets all of it when it reads."""
    tokens = 4000
    engine = FakeEngine(says("x" * tokens), longest=2 * tokens)

    async def go() -> None:
        async with asyncio.timeout(60), serving(app_of(engine)) as port:
            url = f"ws://127.0.0.1:{port}{CHAT}"
            async with connect(url, proxy=None, max_queue=1) as slow, connect(url, proxy=None) as quick:
                for reader in (slow, quick):
                    await ask(reader, logprobs=True, top_logprobs=20)  # 2 KB a message: more than sockets take
                await slow.recv()
                assert len(content(await heard(quick))) == tokens
                assert len(content(await heard(slow))) == tokens

    asyncio.run(go())
