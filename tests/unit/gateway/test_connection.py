"""Clients that stall and flood, over real sockets: each is ended, and others are served meanwhile."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from shoal.gateway.auth.gate import MAX_HEADER_BYTES, MAX_TARGET
from shoal.gateway.service import MAX_BODY
from shoal.request import FinishReason, Request, TokenChunk
from tests.support.api import GET, HI, api, error_of, post, run
from tests.support.engine import FakeEngine, Item, says
from tests.support.http import CHAT, eventually

LONG = 20_000


def endless(request: Request) -> list[Item]:
    """So many tokens that no socket takes all of them; they end with a choice."""
    chunks = [TokenChunk(request.id, 0, ord("x")) for _ in range(min(request.max_tokens, LONG))]
    return [*chunks, TokenChunk(request.id, 0, None, finish=FinishReason.LENGTH)]


# Slow requests


@pytest.mark.parametrize("said", [b"", b"POST", b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-A: 1\r\n"])
def test_headers_that_do_not_come_are_not_waited_for(said: bytes) -> None:
    async def work() -> None:
        async with api(FakeEngine()) as there:
            slow = await there.connect(said)
            await there.until_open(1)
            await eventually(lambda: all(c._received == len(said) for c in there.server.connections.open))
            await there.pass_time(9)
            assert there.open == 1
            assert await there.status() == 200
            await there.pass_time(3)
            rest = await slow.rest()
            assert rest.startswith(b"HTTP/1.1 408 ") if said else rest == b""
            await there.until_open(0)
            assert await there.status() == 200

    run(work)


def test_headers_that_drip_are_not_waited_for_either() -> None:
    async def work() -> None:
        async with api(FakeEngine()) as there:
            slow = await there.connect(b"GET / HTTP/1.1\r\n")
            for i in range(9):
                await slow.send(b"X-%d: 1\r\n" % i)
                await there.pass_time(1)
            assert there.open == 1
            await there.pass_time(3)
            assert error_of((await slow.rest()).partition(b"\r\n\r\n")[2])["code"] == "request_timeout"

    run(work)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_drips_is_not_waited_for(chunked: bool) -> None:
    async def work() -> None:
        engine = FakeEngine()
        async with api(engine) as there:
            length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 100000"
            slow = await there.connect(b"POST %s HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n" % (CHAT.encode(), length))
            for _ in range(9):
                await slow.send(b"1\r\n \r\n" if chunked else b" ")
                await asyncio.sleep(0.01)
                await there.pass_time(1)
            assert there.open == 1
            assert await there.status() == 200
            await there.pass_time(4)
            assert (await slow.rest()).startswith(b"HTTP/1.1 408 ")
            await there.until_open(0)
            await eventually(lambda: there.service.in_flight.inside == 0)
            assert len(engine.streams) == 1

    run(work)


def test_half_a_request_and_silence_is_a_client_that_left_when_it_hangs_up() -> None:
    async def work() -> None:
        async with api(FakeEngine()) as there:
            half = await there.connect(post(HI)[:-5])
            await eventually(lambda: there.asking == 1)
            half.hang_up()
            await there.until_open(0)

    run(work)


def test_an_idle_connection_is_closed_and_a_busy_one_is_not() -> None:
    async def work() -> None:
        async with api(FakeEngine(lambda r: [], hang=True), keep_alive=1) as there:
            idle, busy = await there.connect(GET), await there.connect(post(HI))
            assert (await idle.answer())[0] == 200
            assert await idle.rest() == b""
            await there.pass_time(100)
            assert there.open == there.service.in_flight.inside == 1
            busy.hang_up()
            await eventually(lambda: there.service.in_flight.inside == 0)

    run(work)


# Too much


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: 1\r\n" % i for i in range(10_000)), 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: 1\r\n" * 4000 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nX-A: " + b"x" * (1 << 20), 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"x" * (MAX_HEADER_BYTES + 100) + b"\r\n\r\n", 431),
        (b"GET /" + b"x" * (1 << 20), 431),
        (b"GET /" + b"x" * (MAX_TARGET + 1) + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (post(b"")[:-2].replace(b"Content-Length: 0", b"Content-Length: %d" % (MAX_BODY + 1)) + b"\r\n", 413),
        (post(b"")[:-2].replace(b"Content-Length: 0", b"Content-Length: 9" + b"9" * 18) + b"\r\n", 413),
    ],
    ids=[
        "10,000 headers",
        "4,000 short ones",
        "1 MB header",
        "a header over the limit",
        "1 MB target",
        "a target over the limit",
        "a body",
        "10^19",
    ],
)
def test_what_is_too_large_is_refused_while_it_comes(said: bytes, status: int) -> None:
    async def work() -> None:
        async with api(FakeEngine()) as there:
            big = await there.connect()
            sending = asyncio.ensure_future(big.send(said))
            answered, body = await big.answer()
            assert answered == status
            assert error_of(body)
            assert await there.status() == 200
            big.hang_up()
            await asyncio.gather(sending, return_exceptions=True)
            await there.until_open(0)

    run(work)


def test_a_body_without_an_end_is_refused_and_not_kept() -> None:
    async def work() -> None:
        async with api(FakeEngine()) as there:
            big = await there.connect(b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % CHAT.encode())
            part = b"10000\r\n" + b" " * 0x10000 + b"\r\n"

            async def send() -> None:
                while True:
                    await big.send(part)
                    await asyncio.sleep(0)

            sending = asyncio.ensure_future(send())
            status, body = await big.answer()
            assert (status, error_of(body)["code"]) == (413, "request_too_large")
            await there.pass_time(7)
            await there.until_open(0)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    run(work)


def test_after_a_body_that_was_refused_but_ended_the_connection_is_good() -> None:
    async def work() -> None:
        async with api(FakeEngine()) as there:
            client = await there.connect(post(b" " * (MAX_BODY + 1)))
            assert (await client.answer())[0] == 413
            await client.send(post(HI))
            assert (await client.answer())[0] == 200

    run(work)


@pytest.mark.parametrize(("length", "says_first"), [(MAX_BODY + 1, b"413"), (len(json.dumps(HI)), b"100")])
def test_who_asks_first_whether_to_send_a_body_is_told(length: int, says_first: bytes) -> None:
    async def work() -> None:
        async with api(FakeEngine()) as there:
            headers = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n\r\n"
            client = await there.connect(headers.encode())
            assert (await client.reader.readline()).split()[1] == says_first
            if says_first == b"100":
                await client.reader.readline()
                await client.send(json.dumps(HI).encode())
                assert (await client.answer())[0] == 200

    run(work)


# Several requests on one connection


def test_requests_sent_at_once_are_answered_in_their_order() -> None:
    async def work() -> None:
        async with api(FakeEngine(says("Hello"))) as there:
            asked = [post({**HI, "max_tokens": n}) for n in (1, 2, 3)]
            client = await there.connect(asked[0] + GET + asked[1] + asked[2])
            answers = [json.loads((await client.answer())[1]) for _ in range(4)]
            assert [a["choices"][0]["message"]["content"] if "choices" in a else a["object"] for a in answers] == ["H", "list", "He", "Hel"]

    run(work)


def test_a_client_that_sends_on_and_on_while_it_is_answered_is_ended() -> None:
    async def work() -> None:
        engine = FakeEngine(lambda r: [], hang=True)
        async with api(engine) as there:
            client = await there.connect(post(HI))
            flooding = asyncio.ensure_future(client.send(GET * 500_000))
            await there.until_open(0)
            await eventually(lambda: there.service.in_flight.inside == 0)
            assert engine.streams[0].closed
            await asyncio.gather(flooding, return_exceptions=True)

    run(work)


def test_a_client_that_leaves_is_noticed_with_requests_left_behind_it() -> None:
    async def work() -> None:
        engine = FakeEngine(lambda r: [], hang=True)
        async with api(engine) as there:
            client = await there.connect(post(HI) + GET * 100)
            await eventually(lambda: engine.streams)
            client.hang_up()
            await eventually(lambda: there.service.in_flight.inside == 0)
            assert engine.streams[0].closed

    run(work)


# Floods of connections


def test_at_the_limit_those_that_ask_nothing_make_room() -> None:
    async def work() -> None:
        async with api(FakeEngine(lambda r: [], hang=True), connections=4) as there:
            busy = await there.connect(post(HI))
            await eventually(lambda: there.service.in_flight.inside == 1)
            idle = [await there.connect() for _ in range(20)]
            await eventually(lambda: there.open == 4 and len(there.server.connections.waiting) == 3)
            asking = await there.connect(GET)
            assert (await asking.answer())[0] == 200
            assert [await wire.rest() for wire in idle[:17]] == [b""] * 17
            assert there.service.in_flight.inside == 1
            busy.hang_up()

    run(work)


def test_where_all_ask_something_a_new_one_is_told_that_it_is_full() -> None:
    async def work() -> None:
        async with api(FakeEngine(lambda r: [], hang=True), connections=3) as there:
            busy = [await there.connect(post(HI)) for _ in range(3)]
            await eventually(lambda: there.service.in_flight.inside == 3)
            head, _, body = (await (await there.connect()).rest()).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ") and b"connection: close" in head.lower()
            assert error_of(body)["code"] == "too_many_connections"
            busy[0].hang_up()
            await there.until_open(2)
            assert (await (await there.connect(GET)).answer())[0] == 200

    run(work)


# Clients that do not read


async def stalled(there: Any, **more: Any) -> Any:
    """A client that asks for a long stream and reads nothing of it; the server is held back by it."""
    wire = await there.connect(window=1024)
    wire.stop_reading()
    await wire.send(post({**HI, "stream": True, "max_tokens": LONG, "logprobs": True, "top_logprobs": 20, **more}))
    await eventually(lambda: any(c.flow.write_paused for c in there.server.connections.open))
    return wire


def test_a_client_that_does_not_read_holds_back_itself_alone_and_is_ended() -> None:
    async def work() -> None:
        engine = FakeEngine(endless, longest=LONG * 2)
        async with api(engine, stall=20) as there:
            await stalled(there)
            (held,) = [c for c in there.server.connections.open if c.flow.write_paused]
            (stream,) = engine.streams
            await eventually(lambda: not stream._items)  # drawn at full speed: slot and blocks are free
            assert held.transport.get_write_buffer_size() < 256 << 10
            for _ in range(5):
                assert await there.status() == 200
            await there.pass_time(19)
            assert held.flow.write_paused
            await there.pass_time(3)
            await there.until_open(0)
            await eventually(lambda: there.service.in_flight.inside == 0)
            assert stream.closed
            assert not there.service.answers._answers

    run(work)


def test_a_client_that_reads_slowly_gets_everything() -> None:
    async def work() -> None:
        async with api(FakeEngine(endless, longest=LONG * 2)) as there:
            wire = await stalled(there)
            wire.read_on()
            got, turns, since = b"", 0, 0
            while not got.endswith(b"0\r\n\r\n"):
                part = await wire.reader.read(64 << 10)
                assert part, "it was ended"
                got, turns, since = got + part, turns + 1, since + len(part)
                if turns % 4 == 0:
                    await asyncio.sleep(0.005)
                if since >= 240_000:
                    since = 0
                    await there.pass_time(3)  # some 80 KB a second
            assert got.count(b'"content":"x"') == LONG

    run(work)


def test_a_client_that_never_takes_the_end_is_ended() -> None:
    """All is written, and what the kernel did not take lies in a connection that is being closed."""

    async def work() -> None:
        async with api(FakeEngine(endless, longest=LONG * 2), stall=20) as there:
            wire = await there.connect(window=1024)
            wire.stop_reading()
            await wire.send(post({**HI, "max_tokens": LONG, "logprobs": True, "top_logprobs": 5}, CHAT, "Connection: close"))
            await eventually(lambda: any(c.transport.is_closing() for c in there.server.connections.open))
            await there.pass_time(23)
            await there.until_open(0)

    run(work)
