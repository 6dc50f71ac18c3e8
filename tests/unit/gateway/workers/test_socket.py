"""What goes over the socket between the head and its workers, and what the socket bears."""

from __future__ import annotations

import asyncio
import inspect
import socket
import struct
import tempfile
from contextlib import suppress
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal import errors
from shoal.errors import RemoteProtocolError, ShoalError
from shoal.gateway.auth.key import KeyId
from shoal.gateway.workers import channel as channels
from shoal.gateway.workers import messages
from shoal.gateway.workers.channel import Channel
from shoal.gateway.workers.client import RemoteEngines
from shoal.gateway.workers.messages import Failure, FromHead, FromWorker
from shoal.request import RequestId, TokenChunk
from tests.support.engine import FakeEngine
from tests.support.http import eventually
from tests.support.remote import Workers, one, run
from tests.support.requests import asked, begun, read, text


def every_kind(base: type[ShoalError] = ShoalError) -> list[type[ShoalError]]:
    return [base, *(kind for sub in base.__subclasses__() if sub.__module__ == errors.__name__ for kind in every_kind(sub))]


SAMPLES: dict[str, Any] = {
    "str": "what",
    "str | None": "what",
    "int": 3,
    "float": 2.5,
    "bool": True,
    "list[str]": ["a", "b"],
    "object": "x",
}


def sample(kind: type[ShoalError]) -> ShoalError:
    if kind.__init__ is Exception.__init__:
        return kind("what happened")
    parameters = [*inspect.signature(kind.__init__).parameters.values()][1:]
    return kind(*(SAMPLES[p.annotation] for p in parameters if p.kind is not p.KEYWORD_ONLY))


@pytest.mark.parametrize("kind", every_kind(), ids=lambda kind: kind.__name__)
def test_an_error_is_the_same_on_the_other_side(kind: type[ShoalError]) -> None:
    error = sample(kind)
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(Failure.of(error)), type=Failure).error
    assert (type(sent), str(sent), vars(sent)) == (kind, str(error), vars(error))


def test_an_error_of_another_version_is_an_error() -> None:
    assert type(Failure("Unheard", "of it").error) is ShoalError


async def pair() -> tuple[Channel[FromWorker], Channel[FromHead], socket.socket]:
    """Both ends, and the worker's socket."""
    ours, theirs = socket.socketpair()
    head: Channel[FromWorker] = Channel(*await asyncio.open_unix_connection(sock=ours), FromWorker)
    worker: Channel[FromHead] = Channel(*await asyncio.open_unix_connection(sock=theirs), FromHead)
    return head, worker, theirs


def test_what_cannot_be_written_is_told_to_who_says_it_and_holds_back_nothing_else() -> None:
    async def work() -> None:
        head, worker, _ = await pair()
        worker.say(messages.Forget("before"))
        with pytest.raises(OverflowError):
            worker.say(messages.Spend(KeyId(""), 2**64))
        worker.say(messages.Forget("behind"))
        assert [await head.hear(), await head.hear()] == [messages.Forget("before"), messages.Forget("behind")]
        await worker.close()
        await head.close()

    asyncio.run(work())


tokens = st.builds(
    TokenChunk,
    request=st.sampled_from([RequestId("a-0"), RequestId("b-0")]),
    choice=st.integers(0, 15),
    token=st.none() | st.integers(0, 2**31),
    logprob=st.none() | st.floats(max_value=0, allow_nan=False),
    embedding=st.binary(max_size=20),
)


@given(st.lists(tokens | st.builds(messages.Over, st.just(RequestId("a-0"))), max_size=30))
def test_what_is_said_is_heard_in_its_order_and_tokens_of_one_turn_together(items: list[TokenChunk | messages.Over]) -> None:
    async def work() -> None:
        head, worker, _ = await pair()
        for item in items:
            head.say_token(item) if isinstance(item, TokenChunk) else head.say(item)
        await head.close()
        with suppress(EOFError):
            while True:
                heard.append(await worker.hear())
        await worker.close()

    heard: list[Any] = []
    asyncio.run(work())
    assert [item for message in heard for item in (message.chunks if isinstance(message, messages.Said) else [message])] == items
    assert not any(isinstance(a, messages.Said) and isinstance(b, messages.Said) for a, b in pairwise(heard))


@pytest.mark.parametrize(
    "raw",
    [
        struct.pack("<I", channels.MAX_MESSAGE + 1),
        struct.pack("<I", 3) + b"\x93\x63\x00",
        struct.pack("<I", 1) + b"\xc1",
        struct.pack("<I", 0),
    ],
    ids=["too long", "unknown", "no msgpack", "empty"],
)
def test_what_is_no_message_ends_the_conversation_alone(raw: bytes) -> None:
    async def work(made: Workers) -> None:
        worker = await made.join()
        reader, writer = await asyncio.open_unix_connection(made.path)
        writer.write(raw)
        assert await reader.read() == b""
        writer.close()
        (stream,) = await begun(one(worker), asked())
        assert text(await read(stream)) == "Hello"

    run(FakeEngine(), work)


@pytest.mark.parametrize("first", [messages.Forget("a"), messages.Scrape(0)])
def test_who_does_not_join_first_is_not_heard(first: messages.Message) -> None:
    async def work(made: Workers) -> None:
        reader, writer = await asyncio.open_unix_connection(made.path)
        stranger: Channel[FromHead] = Channel(reader, writer, FromHead)
        stranger.say(first)
        with pytest.raises(EOFError):
            await stranger.hear()
        stranger.abort()

    run(FakeEngine(), work)


def test_what_is_not_counted_is_refused() -> None:
    async def work(made: Workers) -> None:
        worker = await made.join()
        worker._channel.say(messages.Observed("fake", "weather", (1,)))
        await eventually(lambda: made.lost)

    run(FakeEngine(), work)


def test_a_head_that_says_nonsense_is_left() -> None:
    async def work() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(struct.pack("<I", 1) + b"\xc1")
            writer.close()

        with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
            async with await asyncio.start_unix_server(serve, f"{folder}/engine"):
                with pytest.raises(RemoteProtocolError):
                    await RemoteEngines.connect(f"{folder}/engine", lambda found, trust: FakeEngine().tokenizer)  # pyright: ignore[reportArgumentType]

    asyncio.run(work())
