"""On a clock of the test's own: each answer of the pairing port leaves at one time after what it answers, whatever it took to make."""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

import pytest

from shoal.errors import PairingRefused
from shoal.security.authority import Authority
from shoal.security.pairing import NodeExchange
from shoal.security.pairing_code import ALPHABET, PairingCode
from shoal.security.pairing_desk import PairingDesk, Ticket
from shoal.security.pairing_messages import PairingKind, pack
from shoal.security.pairing_pace import ANSWER
from shoal.security.pairing_service import PairingListener, pair, serve_pairing

pytestmark = pytest.mark.real
HOST = "127.0.0.1"
AUTHORITY = Authority.create(dt.datetime.now(dt.UTC))


class SlowDesk(PairingDesk):
    """Takes its time on the head's clock with every guess, as the exchange would."""

    head: Head

    def admit(self, nameplate: str, now: float, address: str = "") -> Ticket:
        self.head.now += self.head.work
        return super().admit(nameplate, now, address)

    def settle(self, ticket: Ticket, now: float) -> None:
        self.head.now += 2 * self.head.work
        super().settle(ticket, now)


class Head:
    """Its clock is moved by what is computed and by what is held back."""

    def __init__(self, work: float) -> None:
        self.now, self.work = 100.0, work
        self.left = [self.now]
        """When each answer did, after the time when all began."""
        self.gate: asyncio.Event | None = None
        self.held = asyncio.Event()
        self.desk = SlowDesk(lifetime=1e9, randbelow=random.Random(1).randrange)
        self.desk.head = self
        self.listener: PairingListener

    async def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.held.set()
        if self.gate is not None:
            await self.gate.wait()
        self.now += seconds
        self.left.append(self.now)

    @property
    def took(self) -> list[float]:
        """For each answer, the time from its question on."""
        return [round(after - before, 6) for before, after in itertools.pairwise(self.left)]

    @property
    def code(self) -> PairingCode:
        return self.desk.code(self.now)

    @property
    def wrong_code(self) -> PairingCode:
        text = str(self.code)
        return PairingCode(text[:-1] + ALPHABET[(ALPHABET.index(text[-1]) + 1) % len(ALPHABET)])

    async def told(self, *messages: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(HOST, self.listener.port)
        try:
            for message in messages:
                writer.write(message)
            writer.write_eof()
            return await reader.read()
        finally:
            writer.transport.abort()


@asynccontextmanager
async def head(work: float) -> AsyncIterator[Head]:
    it = Head(work)
    it.listener = await serve_pairing(HOST, 0, it.desk, AUTHORITY, lambda _: None, clock=lambda: it.now, sleep=it.sleep)
    try:
        yield it
    finally:
        await it.listener.close()


def run(scenario: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(scenario())


async def good(it: Head) -> None:
    await pair(HOST, it.listener.port, it.code, "anna")


async def used(it: Head) -> None:
    code = it.code
    await pair(HOST, it.listener.port, code, "anna")
    with pytest.raises(PairingRefused, match="used"):
        await pair(HOST, it.listener.port, code, "anna")


async def wrong(it: Head) -> None:
    with pytest.raises(PairingRefused, match="wrong"):
        await pair(HOST, it.listener.port, it.wrong_code, "eve")


async def guessed_proof(it: Head) -> None:
    assert b"wrong" not in await it.told(NodeExchange(it.code, "eve").hello(), pack(PairingKind.REQUEST, bytes(300)))


async def no_element(it: Head) -> None:
    assert await it.told(pack(PairingKind.HELLO, it.code.nameplate.encode() + b"A" + b"\xff" * 32)) == b""


async def too_often(it: Head) -> None:
    for _ in range(3):
        await wrong(it)
    with pytest.raises(PairingRefused, match="too many tries"):
        await pair(HOST, it.listener.port, it.wrong_code, "eve")


@pytest.mark.parametrize("work", [0.0, 0.02, 0.2])
@pytest.mark.parametrize(
    ("conversation", "answers"), [(good, 2), (used, 3), (wrong, 1), (guessed_proof, 2), (no_element, 1), (too_often, 4)]
)
def test_every_answer_leaves_at_the_same_time(conversation: Callable[[Head], Coroutine[None, None, None]], answers: int, work: float):
    async def scenario() -> None:
        async with head(work) as it:
            await conversation(it)
            assert it.took == [ANSWER] * answers

    run(scenario)


def test_nothing_is_sent_before_its_time():
    async def scenario() -> None:
        async with head(0.001) as it:
            it.gate = asyncio.Event()
            reader, writer = await asyncio.open_connection(HOST, it.listener.port)
            writer.write(NodeExchange(it.code, "anna").hello())
            await it.held.wait()
            answer = asyncio.ensure_future(reader.readexactly(1))
            done, _ = await asyncio.wait([answer], timeout=0.2)
            assert not done
            it.gate.set()
            assert await answer
            writer.transport.abort()

    run(scenario)
