"""What is no HTTP, and what two servers may read differently: the connection ends."""

from __future__ import annotations

import json

import pytest

from tests.support.api import GET, HI, api, error_of, post, run
from tests.support.engine import FakeEngine
from tests.support.http import CHAT, eventually

# Nonsense


@pytest.mark.parametrize(
    "said",
    [
        post(b"").replace(b"Content-Length: 0", b"Content-Length: -5"),
        post(b"").replace(b"Content-Length: 0", b"Content-Length: 1e3"),
        post(b"").replace(b"Content-Length: 0", b"Content-Length: 5, 6"),
        post(b"").replace(b"Content-Length: 0", b"Content-Length: " + b"9" * 30),
        post(b"", CHAT, "Content-Length: 7"),
        post(b"", CHAT, "Transfer-Encoding: gzip"),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        b"GET / HTTP/1.1\r\nHost: x\r\nBad Name: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET  /  HTTP/9.9\r\n\r\n",
        b"\r\n" * 1000 + b"nonsense\r\n\r\n",
    ],
)
def test_what_is_no_http_is_told_so_and_hung_up_on(said: bytes) -> None:
    async def work() -> None:
        engine = FakeEngine()
        async with api(engine) as there:
            client = await there.connect(said)
            head, _, body = (await client.rest()).partition(b"\r\n\r\n")
            assert head.split()[1] in (b"400", b"501", b"505"), head
            assert error_of(body)["code"] == "invalid_http"
            await there.until_open(0)
            assert await there.status() == 200

    run(work)


def test_a_chunk_that_is_none_ends_the_request_in_the_middle() -> None:
    async def work() -> None:
        async with api(FakeEngine()) as there:
            client = await there.connect(b'POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"mes' % CHAT.encode())
            await eventually(lambda: there.asking == 1)
            await client.send(b"\r\nZZ\r\n")
            assert (await client.rest()).startswith(b"HTTP/1.1 400 ")
            await there.until_open(0)

    run(work)


# What a proxy might read in another way


BODY = json.dumps(HI).encode()
SMUGGLED = {
    "a length beside chunks": (b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n", "chunked"),
    "chunks, and then a length": (b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: %d\r\n\r\n", "chunked"),
    "HTTP/1.0 with chunks": (b"POST %s HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\nX: %d\r\n\r\n", "chunked"),
    "bare LF between headers": (b"POST %s HTTP/1.1\r\nHost: x\nContent-Length: %d\r\n\r\n", "plain"),
    "bare LF at the end of the head": (b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\n", "plain"),
    "bare LF after the request's line": (b"POST %s HTTP/1.1\nHost: x\r\nContent-Length: %d\r\n\r\n", "plain"),
    "a header folded by a space": (b"POST %s HTTP/1.1\r\nHost: x\r\nX-A: 1\r\n 2\r\nContent-Length: %d\r\n\r\n", "plain"),
    "a header folded by a tab": (b"POST %s HTTP/1.1\r\nHost: x\r\nX-A: 1\r\n\t2\r\nContent-Length: %d\r\n\r\n", "plain"),
    "bare LF in a trailer": (b"POST %s HTTP/1.1\r\nHost: x\r\nX: %d\r\nTransfer-Encoding: chunked\r\n\r\n", "trailer"),
    "bare LF after the last chunk": (b"POST %s HTTP/1.1\r\nHost: x\r\nX: %d\r\nTransfer-Encoding: chunked\r\n\r\n", "ended by LF"),
}
BODIES = {
    "plain": BODY,
    "chunked": b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    "trailer": b"%x\r\n%s\r\n0\r\nX-A: 1\nX-B: 2\r\n\r\n" % (len(BODY), BODY),
    "ended by LF": b"%x\r\n%s\r\n0\r\n\n" % (len(BODY), BODY),
}


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "a byte at a time"])
@pytest.mark.parametrize("what", SMUGGLED)
def test_what_two_servers_may_read_differently_ends_the_connection(what: str, at_once: bool) -> None:
    async def work() -> None:
        engine = FakeEngine()
        async with api(engine) as there:
            head, body = SMUGGLED[what]
            said = head % (CHAT.encode(), len(BODY)) + BODIES[body]
            client = await there.connect()
            # A second request behind it must not be taken for one, either.
            for part in [said + GET] if at_once else [bytes([byte]) for byte in said]:
                await client.send(part)
            rest = await client.rest()
            assert rest.startswith(b"HTTP/1.1 400 ") and rest.count(b"HTTP/1.1 ") == 1
            assert b"connection: close" in rest.lower()
            assert error_of(rest.partition(b"\r\n\r\n")[2])["code"] == "invalid_http"
            assert await there.status() == 200

    run(work)


def test_chunks_with_trailers_and_a_second_request_behind_are_served() -> None:
    async def work() -> None:
        async with api(FakeEngine()) as there:
            head = b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % CHAT.encode()
            client = await there.connect(head + b"%x\r\n%s\r\n0\r\nX-A: 1\r\n\r\n" % (len(BODY), BODY) + GET)
            assert [(await client.answer())[0] for _ in range(2)] == [200, 200]

    run(work)
