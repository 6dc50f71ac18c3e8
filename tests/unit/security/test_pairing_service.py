"""Pairing over real sockets: a node, strangers, and what each is told."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog
import uvloop

from shoal.errors import ClusterError, ConfigError, PairingRefused, RemoteProtocolError, ShoalError, VersionMismatch
from shoal.security.authority import Authority
from shoal.security.pairing import NodeExchange
from shoal.security.pairing_code import ALPHABET, PairingCode
from shoal.security.pairing_desk import FREE, PairingDesk
from shoal.security.pairing_messages import HEADER_SIZE, LARGEST, PairingKind, pack, payload_size
from shoal.security.pairing_service import (
    CONVERSATIONS,
    FROM_ONE_PLACE,
    Paired,
    PairingEvent,
    PairingListener,
    TurnedAway,
    pair,
    serve_pairing,
)

AUTHORITY = Authority.create(dt.datetime.now(dt.UTC))
HOST = "127.0.0.1"


class Head:
    """A head that pairs; its desk's clock stands still but for the time that answers are held back."""

    def __init__(self) -> None:
        self.now = 0.0
        self.desk = PairingDesk(lifetime=1e6, randbelow=random.Random(0).randrange)
        self.events: list[PairingEvent] = []
        self.heard = asyncio.Event()
        self.listener: PairingListener

    def note(self, event: PairingEvent) -> None:
        self.events.append(event)
        self.heard.set()

    async def event(self) -> PairingEvent:
        """The next event that nobody has asked for."""
        while not self.events:
            self.heard.clear()
            await self.heard.wait()
        return self.events.pop(0)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)

    @property
    def code(self) -> PairingCode:
        return self.desk.code(self.now)

    @property
    def wrong_code(self) -> PairingCode:
        text = str(self.code)
        return PairingCode(text[:-1] + ALPHABET[(ALPHABET.index(text[-1]) + 1) % len(ALPHABET)])

    async def let_in(self) -> None:
        """A good node is served, whatever was before."""
        assert (await pair(HOST, self.listener.port, self.code, "good", 5)).name == "good"


@asynccontextmanager
async def head(patience: float = 5.0) -> AsyncIterator[Head]:
    it = Head()
    it.listener = await serve_pairing(HOST, 0, it.desk, AUTHORITY, it.note, patience=patience, clock=lambda: it.now, sleep=it.sleep)
    try:
        yield it
    finally:
        await it.listener.close()


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Awaitable[None]], None]:
    """Runs a scenario on either event loop. One that hangs or leaves a task behind fails."""

    async def limited(scenario: Awaitable[None]) -> None:
        async with asyncio.timeout(5):
            await scenario
        assert asyncio.all_tasks() == {asyncio.current_task()}

    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def start(scenario: Awaitable[None]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(limited(scenario))

    return start


async def refusal(attempt: Awaitable[object]) -> PairingRefused:
    with pytest.raises(PairingRefused) as caught:
        await attempt
    return caught.value


async def until_hung_up(port: int, data: bytes, *, end: bool = False) -> bytes:
    """What the head says to these bytes before it hangs up."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(data)
        if end:
            writer.write_eof()
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.transport.abort()


def test_a_node_is_let_in(run):
    async def scenario() -> None:
        async with head() as it:
            code = it.code
            credentials = await pair(HOST, it.listener.port, code, "anna", 5)
            credentials.check(dt.datetime.now(dt.UTC))
            assert credentials.name == "anna" and credentials.authority_fingerprint == AUTHORITY.fingerprint
            assert await it.event() == Paired("anna", HOST)
            assert it.code != code
            await it.let_in()

    run(scenario())


def test_a_used_code_is_refused_by_name(run):
    async def scenario() -> None:
        async with head() as it:
            code = it.code
            await pair(HOST, it.listener.port, code, "anna", 5)
            error = await refusal(pair(HOST, it.listener.port, code, "bert", 5))
            assert error.reason == "used" and "current one" in str(error)
            assert [await it.event(), await it.event()] == [Paired("anna", HOST), TurnedAway(HOST, "used")]

    run(scenario())


def test_wrong_codes_are_slowed_down(run):
    async def scenario() -> None:
        async with head() as it:
            for _ in range(FREE):
                assert (await refusal(pair(HOST, it.listener.port, it.wrong_code, "eve", 5))).reason == "wrong_code"
                assert await it.event() == TurnedAway(HOST, "wrong_code")
            error = await refusal(pair(HOST, it.listener.port, it.code, "anna", 5))
            assert (error.reason, error.wait) == ("wait", 10) and "try again in 10 s" in str(error)
            it.now += 10
            await it.let_in()

    run(scenario())


def test_ten_wrong_codes_bring_a_new_one(run):
    async def scenario() -> None:
        async with head() as it:
            code, wrong = it.code, it.wrong_code
            for _ in range(10):
                assert (await refusal(pair(HOST, it.listener.port, wrong, "eve", 5))).reason == "wrong_code"
                assert await it.event() == TurnedAway(HOST, "wrong_code")
                it.now += 600
            assert it.code != code
            assert (await refusal(pair(HOST, it.listener.port, code, "anna", 5))).reason == "replaced"
            await it.let_in()

    run(scenario())


def test_who_hangs_up_after_the_answer_has_guessed(run):
    async def scenario() -> None:
        async with head() as it:
            for _ in range(FREE):
                reader, writer = await asyncio.open_connection(HOST, it.listener.port)
                writer.write(NodeExchange(it.wrong_code, "eve").hello())
                await reader.readexactly(HEADER_SIZE)
                writer.transport.abort()
                assert await it.event() == TurnedAway(HOST, "wrong_code")
            assert (await refusal(pair(HOST, it.listener.port, it.code, "anna", 5))).reason == "wait"

    run(scenario())


BAD: dict[str, bytes] = {
    "nothing": b"",
    "garbage": b"GET / HTTP/1.1\r\nHost: head\r\n\r\n",
    "half a header": b"shoal\x01",
    "half a message": pack(PairingKind.HELLO, bytes(34))[:20],
    "too long": b"shoal\x01\x01\xff\xff" + bytes(70000),
    "another kind": pack(PairingKind.GRANT, bytes(40)),
    "another version": b"shoal\x07\x01\x00\x00",
    "no element": pack(PairingKind.HELLO, b"0A" + b"\xff" * 32),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_what_is_no_hello_is_hung_up_on(run, data: bytes):
    async def scenario() -> None:
        async with head() as it:
            assert it.code.nameplate != "0"
            answer = await until_hung_up(it.listener.port, data, end=True)
            assert len(answer) <= 20
            event = await it.event()
            assert isinstance(event, TurnedAway) and event.reason in ("broken", "unknown")
            await it.let_in()

    run(scenario())


def test_who_says_nothing_is_hung_up_on(run):
    async def scenario() -> None:
        async with head(patience=0.01) as it:
            assert await until_hung_up(it.listener.port, b"") == b""
            assert await until_hung_up(it.listener.port, b"sho") == b""
            assert [await it.event(), await it.event()] == [TurnedAway(HOST, "broken")] * 2

    run(scenario())


def test_a_bounded_number_of_conversations_of_which_one_machine_has_half(run):
    async def scenario() -> None:
        async with head() as it:

            async def silent(host: str) -> list[Any]:
                made = [await asyncio.open_connection(HOST, it.listener.port, local_addr=(host, 0)) for _ in range(FROM_ONE_PLACE)]
                return [writer for _, writer in made]

            writers = await silent(HOST)
            assert (await refusal(pair(HOST, it.listener.port, it.code, "anna", 5))).reason == "busy"
            assert await it.event() == TurnedAway(HOST, "busy")
            reader, elsewhere = await asyncio.open_connection(HOST, it.listener.port, local_addr=("127.0.0.2", 0))
            elsewhere.write(NodeExchange(it.code, "bert").hello())
            assert await reader.readexactly(HEADER_SIZE)  # there is room for another machine
            elsewhere.transport.abort()
            assert await it.event() == TurnedAway("127.0.0.2", "wrong_code")

            assert CONVERSATIONS == 2 * FROM_ONE_PLACE
            writers += await silent("127.0.0.3")
            third, last = await asyncio.open_connection(HOST, it.listener.port, local_addr=("127.0.0.4", 0))
            assert await third.read()  # why, and the end
            last.transport.abort()
            assert await it.event() == TurnedAway("127.0.0.4", "busy")
            flood = [await asyncio.open_connection(HOST, it.listener.port) for _ in range(5 * CONVERSATIONS)]
            for _ in flood:
                assert await it.event() == TurnedAway(HOST, "busy")
            for writer in [*writers, *(writer for _, writer in flood)]:
                writer.transport.abort()
            for _ in writers:
                event = await it.event()
                assert isinstance(event, TurnedAway) and event.reason == "broken"
            await it.let_in()

    run(scenario())


def test_closing_ends_the_conversations(run):
    async def scenario() -> None:
        async with head() as it:
            reader, writer = await asyncio.open_connection(HOST, it.listener.port)
            writer.write(NodeExchange(it.code, "anna").hello())
            await reader.readexactly(HEADER_SIZE)
            port = it.listener.port
            await it.listener.close()
            with pytest.raises((EOFError, ConnectionError)):
                await reader.readexactly(LARGEST)
            writer.transport.abort()
            with pytest.raises(ClusterError, match="the pairing port at"):
                await pair(HOST, port, it.code, "anna", 5)

    run(scenario())


# What a node is told where no head is.


@asynccontextmanager
async def something_else(answer: bytes | None) -> AsyncIterator[int]:
    """A server that answers with these bytes and hangs up; None: it never says anything."""

    held = list[asyncio.StreamWriter]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)
        header = await reader.readexactly(HEADER_SIZE)
        await reader.readexactly(payload_size(header))
        if answer is not None:
            writer.write(answer)
            writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    for writer in held:
        writer.transport.abort()


@pytest.mark.parametrize(
    ("answer", "error", "what"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", RemoteProtocolError, "is not a pairing port"),
        (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x7f\xff\xff\xff\x00\x04", RemoteProtocolError, "is not a pairing port"),
        (b"", RemoteProtocolError, "hung up"),
        (None, ClusterError, "did not answer"),
        (b"shoal\x02\x02\x00\x00", VersionMismatch, "same shoal"),
        (b"shoal\x01\x02\xff\xff", RemoteProtocolError, "limit"),
    ],
    ids=["http", "http/2", "hangs up", "silent", "version", "oversized"],
)
def test_what_is_no_pairing_port(run, answer: bytes | None, error: type[ShoalError], what: str):
    async def scenario() -> None:
        async with something_else(answer) as port:
            with pytest.raises(error, match=what):
                await pair(HOST, port, PairingCode("7QFK-3M9X"), "anna", 0.05 if answer is None else 5)

    run(scenario())


def test_nobody_there(run):
    async def scenario() -> None:
        async with something_else(b"") as port:
            pass
        with pytest.raises(ClusterError, match="head running"):
            await pair(HOST, port, PairingCode("7QFK-3M9X"), "anna", 5)

    run(scenario())


def test_a_port_in_use(run):
    async def scenario() -> None:
        async with head() as it:
            with pytest.raises(ConfigError, match="in use"):
                await serve_pairing(HOST, it.listener.port, it.desk, AUTHORITY, it.note)

    run(scenario())


def test_the_log_says_who_was_refused_and_never_a_code(run):
    async def scenario() -> None:
        async with head() as it:
            codes = [it.code]
            await refusal(pair(HOST, it.listener.port, it.wrong_code, "eve", 5))
            await it.event()
            await it.let_in()
            codes.append(it.code)
            told = str(lines)
            assert [line["log_level"] for line in lines] == ["warning", "info"]
            assert lines[0]["reason"] == "wrong_code" and lines[0]["peer"] == HOST
            assert not any(str(code)[5:] in told or str(code)[1:4] in told for code in codes) and "BEGIN" not in told

    with structlog.testing.capture_logs() as captured:
        lines: list[Any] = captured
        run(scenario())


def test_a_handler_that_fails_takes_nothing_down(run):
    async def scenario() -> None:
        def fails(event: PairingEvent) -> None:
            raise KeyError(event)

        desk = PairingDesk()
        listener = await serve_pairing(HOST, 0, desk, AUTHORITY, fails, clock=lambda: 0.0, sleep=lambda _: asyncio.sleep(0))
        try:
            for _ in range(2):
                with pytest.raises(ClusterError, match="ended the pairing"):
                    await pair(HOST, listener.port, desk.code(0), "anna", 5)
        finally:
            await listener.close()

    run(scenario())
