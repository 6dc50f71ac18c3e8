"""Workers of one engine: whose an answer is, what becomes of it when a worker or the head dies, and what their socket bears."""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
import struct
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal import errors
from shoal.config import ApiSettings
from shoal.errors import ClusterError, IdTaken, RateLimited, RemoteProtocolError, ShoalError
from shoal.gateway.auth.key import KeyId, KeyLimits
from shoal.gateway.engine import Stream, TakenOver
from shoal.gateway.workers import channel as channels
from shoal.gateway.workers import messages
from shoal.gateway.workers.channel import Channel
from shoal.gateway.workers.client import RemoteEngine
from shoal.gateway.workers.messages import Failure, FromHead, FromWorker
from shoal.request import RequestId, TokenChunk
from tests.support.engine import FakeEngine, Resumed, ScriptedStream, says, spoken
from tests.support.remote import MODEL, Workers, soon, workers
from tests.support.requests import asked, begun, hello, read, text
from tests.support.slow_engine import SlowEngine

NOBODY = KeyId("")


def run(fake: FakeEngine, work: Callable[[Workers], Awaitable[Any]], settings: ApiSettings | None = None) -> Any:
    async def go() -> Any:
        async with workers(fake, settings) as made:
            return await work(made)

    return asyncio.run(go())


async def some(stream: Stream, count: int) -> str:
    return text([await anext(stream) for _ in range(count)])


async def taken(stream: Stream) -> None:
    """Reads until another has it."""
    with pytest.raises(TakenOver):
        await read(stream)


# Joining


@pytest.mark.parametrize("trust_text", [False, True])
def test_a_worker_hears_the_settings_and_opens_the_model_itself(trust_text: bool) -> None:
    async def work(made: Workers) -> None:
        worker = await made.join()
        assert worker.settings == settings
        assert made.opened == [(MODEL, settings.trust_text)]
        assert made.path.stat().st_mode & 0o777 == 0o600

    settings = ApiSettings(port=1234, api_workers=3, trust_text=trust_text)
    run(FakeEngine(), work, settings)


def test_who_leaves_is_told_by_its_process() -> None:
    async def work(made: Workers) -> None:
        await made.leave(await made.join())
        await soon(lambda: made.lost == [os.getpid()])

    run(FakeEngine(), work)


# Answers of several workers


def test_an_answer_is_taken_up_from_its_beginning_by_another_worker() -> None:
    async def work(made: Workers) -> None:
        first, second = await made.join(), await made.join()
        (stream,) = await begun(first, asked(), named=True)
        fake.say(3)
        assert await some(stream, 3) == "Hel"
        found = await second.find("a", NOBODY)
        assert found is not None
        assert (found.id, found.note, found.requests) == ("a", b"note", [asked()])
        with pytest.raises(TakenOver):
            await anext(stream)
        assert await some(found.streams[0], 3) == "Hel"
        fake.say(3)
        assert text(await read(found.streams[0])) == "lo"

    fake = SlowEngine()
    run(fake, work)


def test_an_answer_goes_back_and_forth_and_has_one_reader() -> None:
    async def work(made: Workers) -> None:
        both = await made.join(), await made.join()
        (stream,) = await begun(both[0], asked())
        for turn in range(1, 6):
            fake.say(1)
            found = await both[turn % 2].find("a", NOBODY)
            assert found is not None
            await taken(stream)
            (stream,) = found.streams
        fake.say(1)
        assert text(await read(stream)) == "Hello"

    fake = SlowEngine()
    run(fake, work)


def test_one_worker_may_find_what_it_has_itself() -> None:
    async def work(made: Workers) -> None:
        worker = await made.join()
        (stream,) = await begun(worker, asked())
        fake.say(2)
        assert await some(stream, 2) == "He"
        found = await worker.find("a", NOBODY)
        assert found is not None
        await taken(stream)
        stream.close()
        fake.say(4)
        assert text(await read(found.streams[0])) == "Hello"

    fake = SlowEngine()
    run(fake, work)


def test_what_the_worker_that_lost_an_answer_says_of_it_counts_no_more() -> None:
    async def work(made: Workers) -> None:
        first, second = await made.join(), await made.join()
        (stream,) = await begun(first, asked())
        found = await second.find("a", NOBODY)
        assert found is not None
        stream.end_choice(0)
        stream.close()
        first.forget("a")
        await first.scrape()
        assert (fake.streams[0].closed, fake.streams[0].ended, list(fake.kept)) == (False, set(), ["a"])
        fake.say(6)
        assert text(await read(found.streams[0])) == "Hello"

    fake = SlowEngine()
    run(fake, work)


def test_an_id_is_given_once_whichever_worker_is_asked() -> None:
    async def work(made: Workers) -> None:
        first, second = await made.join(), await made.join()
        await begun(first, asked())
        with pytest.raises(IdTaken, match="/v1/streams/a"):
            await begun(second, asked())
        first.forget("a")
        await first.scrape()
        await begun(second, asked())

    fake = FakeEngine(hello, hang=True)
    run(fake, work)
    assert len(fake.streams) == 2


def test_an_id_that_is_being_given_is_taken() -> None:
    async def work(made: Workers) -> None:
        both = await made.join(), await made.join()
        results = await asyncio.gather(*(begun(worker, asked()) for worker in both), return_exceptions=True)
        assert sorted(type(result).__name__ for result in results) == ["IdTaken", "list"]

    run(FakeEngine(), work)


def test_an_answer_that_was_found_for_nobody_waits_for_another_reader() -> None:
    async def work(made: Workers) -> None:
        first, second = await made.join(), await made.join()
        await begun(first, asked(), named=True)
        finding = asyncio.ensure_future(second.find("a", NOBODY))
        await asyncio.sleep(0)
        finding.cancel()
        await asyncio.gather(finding, return_exceptions=True)
        await second.scrape()
        assert not fake.streams[0].closed
        found = await first.find("a", NOBODY)
        assert found is not None
        fake.say(6)
        assert text(await read(found.streams[0])) == "Hello"

    fake = SlowEngine()
    run(fake, work)


def test_only_whose_it_is_finds_an_answer() -> None:
    async def work(made: Workers) -> None:
        first, second = await made.join(), await made.join()
        (stream,) = await first.begin("a", msgspec.msgpack.encode({"owner": "alice"}), [asked()], True)
        for stranger in (NOBODY, KeyId("bob")):
            assert await second.find("a", stranger) is None
        fake.say(2)
        assert await some(stream, 2) == "He"
        assert await second.find("a", KeyId("alice")) is not None
        await taken(stream)

    fake = SlowEngine()
    run(fake, work)


# What keys may ask of all workers together

ALICE = KeyId("alice")


def test_requests_of_a_key_are_counted_over_all_workers() -> None:
    async def work(made: Workers) -> None:
        first, second = [(await made.join()).limiter for _ in range(2)]
        limits = KeyLimits(requests=10, concurrency=2)
        left = [await limiter.enter(ALICE, limits) for limiter in (first, second)]
        assert [allowance.requests.remaining for allowance in left if allowance.requests is not None] == [9, 8]
        for limiter in (first, second):
            with pytest.raises(RateLimited, match="2 requests of this key are already running") as raised:
                await limiter.enter(ALICE, limits)
            assert (raised.value.what, raised.value.wait) == ("requests", 1.0)
        first.leave(ALICE)
        await first.enter(ALICE, limits)

    run(FakeEngine(), work)


def test_tokens_of_a_key_are_counted_over_all_workers() -> None:
    async def work(made: Workers) -> None:
        first, second = [(await made.join()).limiter for _ in range(2)]
        limits = KeyLimits(tokens=1000)
        await first.enter(ALICE, limits)
        for _ in range(400):
            first.spend(ALICE, 5)

        async def refused() -> bool:
            try:
                await second.enter(ALICE, limits)
            except RateLimited:
                return True
            return False

        while not await refused():  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    run(FakeEngine(), work)


def test_the_requests_of_a_dead_worker_run_no_more() -> None:
    async def work(made: Workers) -> None:
        dying, other = await made.join(), await made.join()
        limits = KeyLimits(concurrency=2)
        await dying.limiter.enter(ALICE, limits)
        await other.limiter.enter(ALICE, limits)
        await made.leave(dying)
        await soon(lambda: made.lost)
        await other.limiter.enter(ALICE, limits)
        with pytest.raises(RateLimited):
            await other.limiter.enter(ALICE, limits)

    run(FakeEngine(), work)


@pytest.mark.parametrize("turns", range(6))
def test_a_request_that_is_not_waited_for_has_left_whenever_that_was(turns: int) -> None:
    async def work(made: Workers) -> None:
        limiter = (await made.join()).limiter
        entering = asyncio.ensure_future(limiter.enter(ALICE, KeyLimits(concurrency=1)))
        for _ in range(turns):
            await asyncio.sleep(0)
        if not entering.cancel() or (await asyncio.gather(entering, return_exceptions=True))[0] is None:
            limiter.leave(ALICE)
        await limiter.enter(ALICE, KeyLimits(concurrency=1))

    run(FakeEngine(), work)


# Ending in good order


def test_the_head_waits_until_every_worker_has_finished() -> None:
    async def work(made: Workers) -> None:
        both = [await made.join() for _ in range(2)]
        (stream,) = await begun(both[0], asked())
        assert made.server.inside == 1
        finishing = asyncio.ensure_future(made.server.finish())
        for worker in both:
            await worker.finishing.wait()
        late = await made.join()
        await late.finishing.wait()
        both[1].finished()
        await both[1].scrape()
        assert not finishing.done()
        fake.say(7)
        await read(stream)
        await soon(lambda: made.server.inside == 0)
        both[0].finished()
        await finishing

    fake = SlowEngine()
    run(fake, work)


def test_the_head_does_not_wait_for_a_worker_that_is_gone() -> None:
    async def work(made: Workers) -> None:
        dying = await made.join()
        finishing = asyncio.ensure_future(made.server.finish())
        await dying.finishing.wait()
        await made.leave(dying)
        await finishing

    run(FakeEngine(), work)


# Workers that die


def test_the_unnamed_answers_of_a_dead_worker_end() -> None:
    async def work(made: Workers) -> None:
        dying, other = await made.join(), await made.join()
        await begun(dying, asked("a-0"), asked("a-1"))
        (stream,) = await begun(other, asked("b-0"), answer="b")
        await made.leave(dying)
        await soon(lambda: [s.closed for s in fake.streams] == [True, True, False])
        assert list(fake.kept) == ["b"]
        assert await other.find("a", NOBODY) is None
        fake.say(6)
        assert text(await read(stream)) == "Hello"

    fake = SlowEngine()
    run(fake, work)


def test_the_named_answer_of_a_dead_worker_goes_on_and_is_found_by_another() -> None:
    async def work(made: Workers) -> None:
        dying, other = await made.join(), await made.join()
        (stream,) = await begun(dying, asked(), named=True)
        fake.say(2)
        assert await some(stream, 2) == "He"
        await made.leave(dying)
        await soon(lambda: made.lost)
        fake.say(2)
        await soon(lambda: len(fake.streams[0]._items) == 2)  # pyright: ignore[reportPrivateUsage]
        found = await other.find("a", NOBODY)
        assert found is not None
        fake.say(2)
        assert text(await read(found.streams[0])) == "Hello"

    fake = SlowEngine()
    run(fake, work)


def test_the_worker_that_comes_for_a_dead_one_takes_up_its_named_answers() -> None:
    async def work(made: Workers) -> None:
        dying = await made.join()
        await begun(dying, asked("a-0"), asked("a-1"), named=True)
        await made.leave(dying)
        await soon(lambda: made.lost)
        fresh = await made.join()
        (resumed,) = fresh.resumed()
        assert [text(await read(stream)) for stream in resumed.streams] == ["Hello", "Hello"]
        assert (await made.join()).resumed() == []

    run(FakeEngine(), work)


def test_nobody_takes_up_a_named_answer_and_it_ends() -> None:
    async def work(made: Workers) -> None:
        dying = await made.join()
        await begun(dying, asked(), named=True)
        await made.leave(dying)
        await soon(lambda: fake.streams[0].closed)
        assert fake.kept == {}
        assert (await made.join()).resumed() == []

    fake = FakeEngine(hello, hang=True)
    fake.resume = 0.02
    run(fake, work)


def test_an_answer_that_was_being_begun_by_a_worker_that_dies_ends() -> None:
    class Slow(FakeEngine):
        async def begin(self, *what: Any) -> Any:
            streams = await super().begin(*what)
            try:
                await asyncio.sleep(60)
            finally:
                for stream in streams:
                    stream.close()

    async def work(made: Workers) -> None:
        dying = await made.join()
        beginning = asyncio.ensure_future(begun(dying, asked(), named=True))
        await soon(lambda: fake.streams)
        await made.leave(dying)
        await soon(lambda: fake.streams[0].closed)
        beginning.cancel()
        await asyncio.gather(beginning, return_exceptions=True)

    fake = Slow(hello, hang=True)
    run(fake, work)


def test_a_worker_that_does_not_read_is_given_up_and_holds_back_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "MAX_UNREAD", 1 << 16)

    async def work(made: Workers) -> None:
        reader, writer = await asyncio.open_unix_connection(made.path, limit=16)
        stuck: Channel[FromHead] = Channel(reader, writer, FromHead)
        stuck.say(messages.Join(4711))
        await stuck.hear()
        stuck.say(messages.Begin(0, "a", b"", [asked(tokens=200_000)], False))
        other = await made.join()
        await soon(lambda: made.lost == [4711])
        assert fake.streams[0].closed
        (stream,) = await begun(other, asked("b-0"), answer="b")
        assert len(await read(stream)) == 100
        stuck.abort()

    fake = FakeEngine(says("x" * 200_000))
    run(fake, work)


# Heads that end


def test_what_runs_ends_with_the_head() -> None:
    async def work(made: Workers) -> None:
        worker = await made.join()
        (stream,) = await begun(worker, asked())
        assert await some(stream, 3) == "Hel"
        waiting = asyncio.ensure_future(read(stream))
        await asyncio.sleep(0)
        await made.server.close()
        await made._running[worker]  # pyright: ignore[reportPrivateUsage]
        await worker.close()
        with pytest.raises(ClusterError, match="engine is gone"):
            await waiting
        with pytest.raises(ClusterError, match="engine is gone"):
            await begun(worker, asked("b-0"), answer="b")

    fake = FakeEngine(hello, hang=True)
    run(fake, work)
    assert fake.streams[0].closed


def test_a_head_that_ends_in_good_order_forgets_no_named_answer() -> None:
    async def work(made: Workers) -> None:
        await begun(await made.join(), asked("a-0"), named=True)

    fake = FakeEngine(hello, hang=True)
    run(fake, work)
    assert (list(fake.kept), fake.streams[0].closed) == (["a"], True)


def test_the_first_worker_takes_up_what_outlived_another_head() -> None:
    async def work(made: Workers) -> None:
        (resumed,) = (await made.join()).resumed()
        assert text(await read(resumed.streams[0])) == "Hello"
        found = await (await made.join()).find("old", NOBODY)
        assert found is not None
        assert text(await read(found.streams[0])) == "Hello"

    request = asked("old-0")
    fake = FakeEngine()
    fake.before = [Resumed("old", b"note", [request], [ScriptedStream(request, spoken(request, "Hello"), False)])]
    run(fake, work)


# What goes over the socket


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
        (stream,) = await begun(worker, asked())
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
        worker._channel.say(messages.Observed("weather", (1,)))  # pyright: ignore[reportPrivateUsage]
        await soon(lambda: made.lost)

    run(FakeEngine(), work)


def test_a_head_that_says_nonsense_is_left() -> None:
    async def work() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(struct.pack("<I", 1) + b"\xc1")
            writer.close()

        with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
            async with await asyncio.start_unix_server(serve, f"{folder}/engine"):
                with pytest.raises(RemoteProtocolError):
                    await RemoteEngine.connect(f"{folder}/engine", lambda path, template: FakeEngine().tokenizer)  # type: ignore[arg-type]

    asyncio.run(work())
